"""A program under its supervisor."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from stream.embedded.process import LOOPBACK
from tests.chaos.ports import lasting_ports
from tests.chaos.program import KILLED, Program
from tests.stream.pipeline import until


def program(tmp_path: Path, *arguments: str) -> tuple[Program, str]:
    """A small server, and its port."""
    port = str(lasting_ports(1)[0])
    return Program("it", [*arguments, port], {}, tmp_path / "log", f"http://{LOOPBACK}:{port}/"), port


async def test_it_is_started_again_whenever_it_ends(tmp_path: Path) -> None:
    """Killed by us or ended by itself: each end is counted for what it was. After a stop it stays away."""
    it, _ = program(tmp_path, "http.server", "--bind", LOOPBACK)
    async with aiohttp.ClientSession() as http:
        await it.start()
        await until(lambda: it.is_ready(http), "it answers")
        it.kill()
        await until(lambda: _ended(it, 1), "its end is seen")
        await until(lambda: it.is_ready(http), "it answers again")
        assert it.ends == {KILLED: 1}
        assert await it.stop() != 0, "http.server knows no SIGTERM"
        assert not await it.is_ready(http)
        assert it.ends == {KILLED: 1}


async def test_a_paused_one_does_not_answer_until_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A life that was killed meanwhile is not meant."""
    monkeypatch.setattr("tests.chaos.program._ASK_TIMEOUT_S", 0.3)
    it, _ = program(tmp_path, "http.server", "--bind", LOOPBACK)
    try:
        async with aiohttp.ClientSession() as http:
            await it.start()
            await until(lambda: it.is_ready(http), "it answers")
            paused = it.pause()
            assert not await it.is_ready(http)
            it.resume(paused)
            await until(lambda: it.is_ready(http), "it goes on")
    finally:
        await it.end()


async def test_one_that_ends_by_itself_says_with_which_status(tmp_path: Path) -> None:
    """And is started again, too."""
    it, _ = program(tmp_path, "http.server", "--no-such-option")
    try:
        await it.start()
        await until(lambda: _ended(it, 2), "it ended twice")
        assert it.ends.keys() == {"status 2"}
        life, began = (tmp_path / "log").read_text().splitlines()[0].split(", ")
        assert life == "--- life 1"
        assert datetime.fromisoformat(began) <= datetime.now(UTC)
    finally:
        await it.end()


async def _ended(it: Program, times: int) -> bool:
    return it.ends.total() >= times
