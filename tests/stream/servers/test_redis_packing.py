"""Commands packed in C say what those packed in Python say."""

from __future__ import annotations

import pytest
from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection

from stream.servers.redis_packing import with_fast_packing

COMMANDS = [
    ("PING",),
    ("SET", b"\x00\r\n", b"\xff" * 70_000, "EX", 60),
    ("EVALSHA", "sha", 2, "a", "ü", 1.5, -3, b""),
    ("MGET", *[f"key{n}".encode() for n in range(1_000)]),
    (b"GET", "k"),
    ("CONFIG GET", "save"),
    (b"SCRIPT LOAD", b"return 1"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
@pytest.mark.parametrize("kind", [Connection, SSLConnection, UnixDomainSocketConnection])
def test_a_command_is_the_same_bytes(command: tuple[str | bytes | float, ...], kind: type[Connection]) -> None:
    """Of every kind of connection, whatever its arguments are."""
    client: Redis = Redis()
    client.connection_pool.connection_class = kind
    ours = with_fast_packing(client).connection_pool.connection_class()
    assert b"".join(ours.pack_command(*command)) == b"".join(kind().pack_command(*command))


async def test_a_server_understands_them(redis_url: str) -> None:
    """Single commands, pipelines and scripts."""
    client = with_fast_packing(Redis.from_url(redis_url))
    await client.set(b"k", b"\x00\r\n", ex=60)
    async with client.pipeline(transaction=True) as pipe:
        pipe.get("k")
        pipe.incrby("n", 3)
        assert await pipe.execute() == [b"\x00\r\n", 3]
    assert await client.register_script("return {KEYS[1], ARGV[1]}")(keys=["a"], args=[2]) == [b"a", b"2"]
    await client.aclose()
