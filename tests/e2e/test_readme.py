"""Every console line of the README, run as it stands there: only addresses and ids are other ones."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from learners.examples.kinds import CLICK, EXPOSURE
from stream.embedded.process import free_port
from stream.kafka.admin import delete_topics
from stream.kafka.broker import find_broker
from stream.records.topics import DEADLETTER, topic_table
from tests.brokers import Broker, TestTopics
from tests.e2e.programs import kcat_program
from tests.readme import Command, commands, shows
from tests.readme_tables import ROOT
from tests.stream.pipeline import until, values
from tests.stream.worker.test_process import examples_of

README = (ROOT / "README.md").read_text()
MADE = [one.text for one in commands(README) if one.text.startswith("make ")]
TYPED = [one for one in commands(README) if one.text not in MADE]
PARTITIONS = 4
_ID = re.compile(r'"(?:user_key|impression_id)":"(\d+)"')


def test_the_readme_is_short() -> None:
    """What belongs to one folder stands in the README of that folder."""
    assert README.count("\n") < 200


@pytest.mark.parametrize("command", MADE)
def test_make_lines_are_run_by_the_ci(command: str) -> None:
    """They take minutes, and bring their own servers."""
    assert re.search(rf"^{' '.join(command.split()[:2])}\b", (ROOT / ".ci/run").read_text(), re.MULTILINE)


class Terminal:
    """One shell, to which commands are typed one after the other."""

    def __init__(self, shell: asyncio.subprocess.Process, folder: Path) -> None:
        assert shell.stdin is not None
        assert shell.stdout is not None
        self._keyboard, self._screen = shell.stdin, shell.stdout
        self._folder = folder

    async def run(self, text: str) -> list[str]:
        """The lines that a command prints. Raises AssertionError when it fails."""
        end = uuid.uuid4().hex
        self._keyboard.write(f"{text}\nprintf '%s %d\\n' {end} $?\n".encode())
        printed = (await self._screen.readuntil(f"{end} ".encode())).decode().removesuffix(f"{end} ")
        status = int(await self._screen.readline())
        assert status == 0, f"{text}\nended with {status}:\n{printed}{self._logs()}"
        return printed.splitlines()

    def _logs(self) -> str:
        return "".join(f"\n{log.name}:\n{log.read_text()[-4000:]}" for log in self._folder.glob("*.log"))


@asynccontextmanager
async def terminal(folder: Path, environment: dict[str, str]) -> AsyncIterator[Terminal]:
    """A shell in ``folder``; what it started in the background is stopped at the end."""
    with (folder / "terminal.log").open("wb") as errors:
        shell = await asyncio.create_subprocess_exec(
            "bash", cwd=folder, env=environment, stdin=PIPE, stdout=PIPE, stderr=errors, limit=1 << 20
        )
    opened = Terminal(shell, folder)
    try:
        await opened.run("set -o pipefail")
        yield opened
    finally:
        try:
            await asyncio.wait_for(opened.run("kill $(jobs -p) && wait"), 30)
        finally:
            shell.kill()
            await shell.wait()


def replaced(text: str, real: dict[str, str]) -> str:
    """A command of the README with what stands there replaced, all at once, by what takes its place here."""
    return re.sub("|".join(map(re.escape, real)), lambda found: real[found[0]], text)


async def printed_as_shown(at: Terminal, text: str, command: Command) -> list[str]:
    """Run a command until it prints the lines that the README shows; counters are asked again, as a reader would."""
    if "/metrics" not in text:
        printed = await at.run(text)
        unmatched = [shown for shown in command.output if not any(shows(shown, line) for line in printed)]
        assert not unmatched, printed
        return printed

    async def counted() -> list[str] | None:
        printed = await at.run(text)
        return printed if printed == [*command.output] else None

    found: list[str] = await until(counted, "\n".join(command.output))
    return found


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_every_line_of_the_readme_runs_and_its_click_is_joined(
    apache_kafka: Broker, redis_url: str, tmp_path: Path
) -> None:
    """From empty servers to a click that was learned: nothing fails, nothing is put aside, two ads differ in p."""
    kcat_program()
    prefix = f"t{uuid.uuid4().hex[:10]}."
    topics = TestTopics(apache_kafka, prefix, PARTITIONS, topic_table(PARTITIONS, prefix=prefix))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MILLSTREAM_TOPIC_PREFIX": prefix,
        "MILLSTREAM_IDLE_TIMEOUT_S": "1",  # the inputs that stay silent: half a minute by default
        "OMP_NUM_THREADS": "1",
    }
    real = {"kafka:9092": apache_kafka.bootstrap, "redis://redis:6379/0": redis_url, " ads.": f" {prefix}ads."}
    real |= {port: str(free_port()) for port in ("8080", "9100")}
    answered: list[dict[str, object]] = []
    try:
        async with terminal(tmp_path, environment) as at:
            for command in TYPED:
                printed = await printed_as_shown(at, replaced(command.text, real), command)
                if "/v1/rank" in command.text:
                    ids = zip(_ID.findall(command.output[0]), _ID.findall(printed[0]), strict=False)
                    real |= dict(ids)
                    answered += orjson.loads(printed[0])["ranked"]
        broker = await find_broker(topics.settings(redis_url))
        assert await values(broker, DEADLETTER) == []
        examples = await examples_of(broker)
    finally:
        await delete_topics(apache_kafka.bootstrap, topics.table)
    shown = int(str(answered[0]["impression_id"]))
    assert sorted(zip(examples.kind.tolist(), examples.impression_id.tolist(), strict=True)) == sorted(
        [(EXPOSURE, shown), (CLICK, shown)]
    )
    assert len({ad["p"] for ad in answered}) == len(answered) == 2
