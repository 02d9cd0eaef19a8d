"""A Redis that outlives a kill, with or without its last moments."""

from __future__ import annotations

import asyncio
from pathlib import Path

from redis.asyncio import Redis

from tests.chaos.lasting_redis import LastingRedis
from tests.chaos.ports import lasting_ports


async def test_a_kill_keeps_everything_or_all_but_the_last_moments(tmp_path: Path) -> None:
    """What was written before those moments is there again under the same URL."""
    server = LastingRedis(lasting_ports(1)[0], tmp_path)
    try:
        await server.start()
        await put(server, "early")
        await server.kill(lost_s=0.0)
        await server.start()
        assert await names(server) == [b"early"]
        await asyncio.sleep(0.5)
        await put(server, *(f"late {number}" for number in range(100)))
        await server.kill(lost_s=0.3)
        await server.start()
        assert await names(server) == [b"early"]
    finally:
        await server.stop()


async def put(server: LastingRedis, *keys: str) -> None:
    """Set keys."""
    async with Redis.from_url(server.url) as client:
        await client.mset(dict.fromkeys(keys, "x" * 100))


async def names(server: LastingRedis) -> list[bytes | str]:
    """All keys."""
    async with Redis.from_url(server.url) as client:
        return list(await client.keys())
