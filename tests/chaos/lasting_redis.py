"""A Redis that keeps its data on the disk, and may lose the last second of it as a crash of its machine would."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from pathlib import Path

from stream.embedded.process import LOOPBACK, accepts_connections, claim_port
from stream.embedded.redis import START_TIMEOUT_S, answers_ping, redis_program
from stream.embedded.server import LocalServer

_LOOK_EVERY_S = 0.05
_REMEMBERED_S = 5.0


class LastingRedis(LocalServer):
    """A `redis-server` with an append-only file on a fixed port and folder."""

    def __init__(self, port: int, data_dir: Path) -> None:
        super().__init__("Redis", port, data_dir, grace_s=2.0)
        self._lengths: deque[tuple[float, int]] = deque()  # of the file, at times of the clock that runs evenly
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Its redis:// URL."""
        return f"redis://{LOOPBACK}:{self._asked_port}/0"

    async def kill(self, lost_s: float) -> None:
        """Kill it at once (SIGKILL) and cut from its file what was appended in the last ``lost_s`` seconds.

        The kill alone would lose nothing: what was written to the file outlives the process. Not so its machine, of
        which `appendfsync everysec` may lose the last second.
        """
        killed_s = time.monotonic()
        await self._server.stop(grace_s=0.0)
        await self._end_watch()
        before = [length for at, length in self._lengths if at <= killed_s - lost_s]
        if lost_s > 0 and before and before[-1] < self._file_bytes():
            os.truncate(self._file, before[-1])
        self._lengths.clear()

    async def stop(self) -> None:
        """Stop it; its data stays."""
        await self._end_watch()
        await super().stop()

    async def _launch(self) -> str:
        program = redis_program()
        port = claim_port(self._asked_port, self._name, "choose another port")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        argv = [program, "--port", str(port), "--bind", LOOPBACK, "--dir", str(self.data_dir), "--daemonize", "no"]
        argv += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]

        async def ready() -> bool:
            return await accepts_connections(port) and await answers_ping(self.url)

        await self._server.start(argv, ready, timeout_s=START_TIMEOUT_S)
        self._watch = asyncio.create_task(self._look())
        return self.url

    async def _look(self) -> None:
        """Remember how long the file was at each of the last moments."""
        while True:
            now = time.monotonic()
            self._lengths.append((now, self._file_bytes()))
            while self._lengths[0][0] < now - _REMEMBERED_S:
                self._lengths.popleft()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    @property
    def _file(self) -> Path:
        """The file that is appended to: the newest, where a server keeps several."""
        files = sorted(self.data_dir.rglob("*.aof"), key=lambda file: file.stat().st_mtime)
        return files[-1] if files else self.data_dir / "appendonly.aof"

    def _file_bytes(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0
