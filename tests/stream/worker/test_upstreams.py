"""Broker and Redis that answer late, or not at all: what is said of them, and for how long they are waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as SilentRedisError

from stream.embedded.process import LOOPBACK
from stream.kafka.broker import find_broker
from stream.servers.settings import StreamSettings
from stream.worker import servers, upstreams
from stream.worker.servers import redis_client
from stream.worker.upstreams import UpstreamProbe, Upstreams
from tests.brokers import TestTopics
from tests.chaos.ports import lasting_ports
from tests.chaos.proxy import Proxy
from tests.stream.pipeline import until


class _Upstream:
    """Answers after ``late_s``, or fails."""

    def __init__(self) -> None:
        self.late_s = 0.0
        self.error: Exception | None = None

    async def ask(self) -> None:
        await asyncio.sleep(self.late_s)
        if self.error is not None:
            raise self.error


async def test_what_is_late_twice_is_degraded_until_an_answer_comes_in_time() -> None:
    """One late answer may be an election; each outage is logged at its start and its end."""
    upstream, degraded = _Upstream(), dict[str, str]()
    probe = UpstreamProbe("redis", upstream.ask, degraded, late_s=0.05, limit_s=0.2)
    with structlog.testing.capture_logs() as logs:
        upstream.late_s = 0.1
        await probe.look()
        assert degraded == {}
        await probe.look()
        assert degraded == {"redis": "answers after 0.1 s"}
        upstream.late_s = 9.0
        await probe.look()
        assert degraded == {"redis": "does not answer within 0.2 s: TimeoutError "}
        upstream.late_s, upstream.error = 0.0, OSError(24, "Too many open files")
        await probe.look()
        assert degraded == {"redis": "does not answer within 0.2 s: OSError [Errno 24] Too many open files"}
        upstream.error = None
        await probe.look()
        assert degraded == {}
    assert [(one["log_level"], one["event"]) for one in logs] == [
        ("warning", "redis answers after 0.1 s; what needs it waits, and is worked off afterwards"),
        ("info", "redis answers in time again"),
    ]


async def test_a_broker_and_a_redis_behind_a_long_way_are_called_so(
    kafka_topics: TestTopics, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody need have work for them; both are well again when the way is short."""
    monkeypatch.setattr(upstreams, "ASK_EVERY_S", 0.05)
    socket, degraded = redis_url.removeprefix("unix://"), dict[str, str]()
    broker = await find_broker(kafka_topics.settings())
    async with (
        Proxy(lasting_ports(1)[0], socket) as way,
        Redis.from_url(f"redis://{LOOPBACK}:{way.port}/0") as redis,
        _watching(Upstreams(broker, redis, degraded)),
    ):
        await redis.ping()  # to connect takes several answers
        slow = asyncio.create_task(way.slow(60.0, 1.5))
        await until(lambda: _holds(degraded, "redis"), "Redis is late")
        assert degraded["redis"].startswith(("answers after 1.", "answers after 2."))
        slow.cancel()
        await until(lambda: _holds(degraded), "Redis is well")


async def test_a_redis_that_says_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is gone closes no connection: without a limit every agent that asks it stands still for ever."""
    monkeypatch.setattr(servers, "REDIS_TIMEOUT_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    (port,) = lasting_ports(1)
    async with await asyncio.start_server(silent, LOOPBACK, port), AsyncExitStack() as stack:
        redis = redis_client(stack, StreamSettings(redis_url=f"redis://{LOOPBACK}:{port}/0"))
        began_s = time.monotonic()
        with pytest.raises(SilentRedisError):
            async with asyncio.timeout(10):
                await redis.get("key")
        assert time.monotonic() - began_s < 5


@asynccontextmanager
async def _watching(watched: Upstreams) -> AsyncIterator[None]:
    task = asyncio.create_task(watched.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _holds(degraded: dict[str, str], *names: str) -> bool:
    return degraded.keys() == {*names}
