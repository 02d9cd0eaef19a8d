"""A program under its supervisor."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from stream.embedded.process import LOOPBACK
from tests.chaos.ports import lasting_ports
from tests.chaos.program import KILLED, ROLLED, Program
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


async def test_it_may_open_no_more_files_for_a_while(tmp_path: Path) -> None:
    """In the life that begins meanwhile neither."""
    it, _ = program(tmp_path, "http.server", "--bind", LOOPBACK)
    try:
        async with aiohttp.ClientSession() as http:
            assert it.limit_files(0) is None, "it does not run"
            await it.start()
            await until(lambda: it.is_ready(http), "it answers")
            most = it.limit_files(0)
            assert most is not None
            assert not await it.is_ready(http), "a connection is a file"
            it.kill()
            await until(lambda: _ended(it, 1), "its end is seen")
            await until(lambda: _may_open(it, most), "it runs again, under the same limit")
            it.unlimit_files()
            await until(lambda: it.is_ready(http), "it answers again")
    finally:
        await it.end()


async def test_it_rolls_to_another_tree(tmp_path: Path) -> None:
    """Ended in good order, it is started with that tree's code."""
    for name, status in (("old", 0), ("new", 3)):
        (tmp_path / name).mkdir()
        stop = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))"
        code = f"import signal, sys\n{stop}\nprint(1, flush=True)\nsignal.pause()"
        (tmp_path / name / "mine.py").write_text(code)
    it = Program("it", ["mine"], {}, tmp_path / "log", "http://127.0.0.1:1", tmp_path / "old")
    try:
        await it.start()
        await until(lambda: _printed(tmp_path, 1), "the old one runs")
        it.roll(tmp_path / "new")
        await until(lambda: _printed(tmp_path, 2), "the new one runs")
        assert it.ends == {ROLLED: 1}
        assert await it.stop() == 3
    finally:
        await it.end()


async def _printed(tmp_path: Path, times: int) -> bool:
    return (tmp_path / "log").read_text().splitlines().count("1") == times


async def _may_open(it: Program, files: int) -> bool:
    return f"Max open files            {files} " in it.limits()


async def _ended(it: Program, times: int) -> bool:
    return it.ends.total() >= times
