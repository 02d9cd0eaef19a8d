"""One of our programs as a process, under a supervisor that starts it again whenever it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from stream.embedded import die_with_parent
from tests.chaos.progress import say

_ROOT = Path(__file__).parents[2]
_GUARD = Path(str(die_with_parent.__file__))
_RESTART_AFTER_S = 0.2
_STOP_LIMIT_S = 20.0  # the programs promise 10
_ASK_TIMEOUT_S = 2.0
KILLED = "killed"


class Program:
    """`python -m ...`, started again until `stop`.

    Parameters
    ----------
    ready_url : answers 200 once it works.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, ready_url: str
    ) -> None:
        self.name = name
        self.log = log
        self.ends: Counter[str] = Counter()  # how its lives ended: killed by us, or with which status
        self._arguments = arguments
        self._environment = environment
        self._ready_url = ready_url
        self._process: asyncio.subprocess.Process | None = None
        self._status = 0
        self._killed = False
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and its supervisor."""
        await self._spawn()
        self._task = asyncio.create_task(self._supervise())

    def kill(self) -> None:
        """SIGKILL; nothing when it does not run just now."""
        self._killed = self._killed or self._process is not None
        self._signal(signal.SIGKILL)

    def pause(self) -> asyncio.subprocess.Process | None:
        """SIGSTOP; what was paused, for `resume`."""
        self._signal(signal.SIGSTOP)
        return self._process

    def resume(self, paused: asyncio.subprocess.Process | None) -> None:
        """SIGCONT, if that life of it has not ended."""
        if paused is self._process:
            self._signal(signal.SIGCONT)

    async def is_ready(self, http: aiohttp.ClientSession) -> bool:
        """Whether it says that it works."""
        try:
            async with http.get(self._ready_url, timeout=aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)) as answer:
                told = await answer.json() if answer.content_type == "application/json" else {}
                return answer.status == 200 and not told.get("degraded")
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def stop(self) -> int:
        """SIGTERM and no restart; its exit status, that of its last life where it does not run just now."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        if self._task is not None:
            _, running = await asyncio.wait([self._task], timeout=_STOP_LIMIT_S)
            if running:
                await self.end()
        return self._status

    async def end(self) -> None:
        """Kill it, whatever it does, and its supervisor."""
        self._stopping = True
        self.kill()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _supervise(self) -> None:
        while self._process is not None:
            self._status = await self._process.wait()
            self._process = None
            if self._stopping:
                return
            self.ends[KILLED if self._killed else f"status {self._status}"] += 1
            if not self._killed:
                say(f"{self.name} ended by itself with status {self._status}")
            self._killed = False
            await asyncio.sleep(_RESTART_AFTER_S)
            if not self._stopping:
                await self._spawn()

    async def _spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"--- life {self.ends.total() + 1}, {datetime.now(UTC).isoformat()}\n".encode())
            log.flush()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), sys.executable, "-m", *self._arguments),
                cwd=_ROOT,
                env={**os.environ, **self._environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
