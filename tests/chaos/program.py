"""One of our programs as a process, under a supervisor that starts it again whenever it ends."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from stream.embedded import die_with_parent
from tests.chaos.progress import say

ROOT = Path(__file__).parents[2]
_GUARD = Path(str(die_with_parent.__file__))
_RESTART_AFTER_S = 0.2
_STOP_LIMIT_S = 20.0  # the programs promise 10
_ASK_TIMEOUT_S = 2.0
_UNDER_A_LIMIT = 'ulimit -Sn "$0" && exec "$@"'
KILLED = "killed"
ROLLED = "rolled"


class Program:
    """`python -m ...`, started again until `stop`.

    Parameters
    ----------
    ready_url : answers 200 once it works.
    root : of the tree whose code it runs.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        ready_url: str,
        root: Path = ROOT,
    ) -> None:
        self.name = name
        self.log = log
        self.ends: Counter[str] = Counter()  # how its lives ended: killed by us, or with which status
        self._arguments = arguments
        self._environment = environment
        self._ready_url = ready_url
        self._root = root
        self._most_files: int | None = None  # None: as many as we may have
        self._process: asyncio.subprocess.Process | None = None
        self._status = 0
        self._killed = False
        self._rolling = False
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

    def roll(self, root: Path) -> None:
        """SIGTERM; its next life is that of another tree."""
        self._root, self._rolling = root, True
        self._signal(signal.SIGTERM)

    def limit_files(self, spare: int) -> int | None:
        """Let it open no more than so many files beside those that are open, in its next lives too.

        Returns how many it may have in all; None, and nothing is done, when it does not run just now.
        """
        if self._process is None or self._process.returncode is not None:
            return None
        opened = len(os.listdir(f"/proc/{self._process.pid}/fd"))
        self._most_files = opened + spare
        self._apply_limit()
        return self._most_files

    def unlimit_files(self) -> None:
        """As many as before."""
        self._most_files = None
        self._apply_limit()

    def limits(self) -> str:
        """What the kernel says of its limits; empty when it does not run just now."""
        try:
            return "" if self._process is None else Path(f"/proc/{self._process.pid}/limits").read_text()
        except OSError:
            return ""

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

    def _apply_limit(self) -> None:
        ours, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self._process is not None and self._process.returncode is None:
            limits = (ours if self._most_files is None else self._most_files, most)
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, limits)

    async def _supervise(self) -> None:
        while self._process is not None:
            self._status = await self._process.wait()
            self._process = None
            if self._stopping:
                return
            self._note_end()
            await asyncio.sleep(_RESTART_AFTER_S)
            if not self._stopping:
                await self._spawn()

    def _note_end(self) -> None:
        if self._rolling and self._status == 0:
            self.ends[ROLLED] += 1
        elif self._killed:
            self.ends[KILLED] += 1
        else:
            self.ends[f"status {self._status}"] += 1
            say(f"{self.name} ended by itself with status {self._status}")
        self._killed = self._rolling = False

    async def _spawn(self) -> None:
        limited = [] if self._most_files is None else ["/bin/sh", "-c", _UNDER_A_LIMIT, str(self._most_files)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"--- life {self.ends.total() + 1}, {datetime.now(UTC).isoformat()}\n".encode())
            log.flush()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_GUARD), str(os.getpid())),
                *(*limited, sys.executable, "-m", *self._arguments),
                cwd=self._root,
                env={**os.environ, **self._environment, "PYTHONPATH": str(self._root)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
