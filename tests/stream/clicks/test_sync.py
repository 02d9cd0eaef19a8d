"""The clicks in Redis are a fold of the examples, whoever owns the partition and whoever believes so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from learners.examples.kinds import CLICK, CONVERSION
from stream.clicks.store import RedisClickStore
from stream.clicks.sync import ClickSync
from stream.kafka.broker import Broker, find_broker
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.metrics import WorkerMetrics
from stream.records.examples import ExampleRows
from stream.records.topics import EXAMPLES
from tests.brokers import TestTopics
from tests.stream.pipeline import SPEC, START_MS, example_rows

_CLICKS = example_rows(4, seed=1, kind=np.full(4, CLICK, np.uint8))


class _Partition(NamedTuple):
    """Partition 0 of fresh topics, and its clicks in an empty Redis."""

    broker: Broker
    store: RedisClickStore

    def owner(self) -> ClickSync:
        """One who believes to own it."""
        return ClickSync(self.store, self.broker, SPEC, 0, WorkerMetrics(CollectorRegistry()))

    async def write(self, *records: ExampleRows) -> list[int]:
        """Append records of examples; their offsets."""
        async with shared_writer(self.broker) as writer:
            encoded = [rows.to_record(SPEC.hash, START_MS).encode() for rows in records]
            return await writer.write([Outgoing(EXAMPLES, value, partition=0) for value in encoded])

    async def conversions(self) -> list[int]:
        """How many conversions stand behind each of the clicks."""
        found = await self.store.find(0, _CLICKS.impression_id)
        return [len(times) for times in found.converted_ms]


@pytest.fixture
async def partition(kafka_topics: TestTopics, redis_url: str) -> AsyncIterator[_Partition]:
    """Nothing is written yet."""
    broker = await find_broker(kafka_topics.settings(redis_url))
    redis: Redis = Redis.from_url(redis_url)
    yield _Partition(broker, RedisClickStore(redis, SPEC, 86_400.0))
    await redis.aclose()


async def test_a_former_owner_does_not_take_the_store_back(partition: _Partition) -> None:
    """Paused beyond its session, it asks for the time before its successor: no conversion is stored a second time."""
    first, second = await partition.write(_CLICKS, _converted(_CLICKS))
    former, successor = partition.owner(), partition.owner()
    assert await successor.catch_up(second + 1)
    assert not await former.catch_up(first + 1)
    assert await partition.store.fence(0) == second + 1
    (third,) = await partition.write(_converted(_CLICKS.take(slice(0, 1)), after_ms=9_000))
    assert await successor.catch_up(third + 1)
    assert await partition.conversions() == [2, 1, 1, 1]


async def test_the_store_itself_moves_no_fence_back(partition: _Partition) -> None:
    """Also for one who has just read where it stands."""
    assert await partition.store.put(0, 0, 7, _CLICKS) == 7
    assert await partition.store.put(0, 7, 3, _converted(_CLICKS)) == 7
    assert await partition.conversions() == [0, 0, 0, 0]


async def test_what_came_while_the_store_was_not_asked_is_read_from_the_log_once(partition: _Partition) -> None:
    """Whatever was stored of it, in whatever life."""
    first, second = await partition.write(_CLICKS, _converted(_CLICKS))
    await partition.store.put(0, 0, first + 1, _CLICKS)
    for _ in range(2):
        assert await partition.owner().catch_up(second + 1)
    assert await partition.conversions() == [1, 1, 1, 1]


@pytest.mark.parametrize("value", [b"abc", b"-7", b"1.5", b"9" * 30, [b"a", b"list"]])
async def test_a_fence_that_is_none_is_the_start_and_what_stood_behind_it_is_forgotten(
    partition: _Partition, redis_url: str, value: bytes | list[bytes]
) -> None:
    """The store is filled again from the log, each conversion once."""
    (_, second) = await partition.write(_CLICKS, _converted(_CLICKS))
    owner = partition.owner()
    assert await owner.catch_up(second + 1)
    redis: Redis = Redis.from_url(redis_url)
    fence = f"millstream:{SPEC.hash}:{{0}}:click"
    await redis.delete(fence)
    await (redis.rpush(fence, *value) if isinstance(value, list) else redis.set(fence, value))
    (third,) = await partition.write(_converted(_CLICKS.take(slice(0, 1)), after_ms=9_000))
    await owner.take(_converted(_CLICKS.take(slice(0, 1)), after_ms=9_000), third + 1)
    assert await owner.catch_up(third + 1)
    assert await partition.store.fence(0) == third + 1
    assert await partition.conversions() == [2, 1, 1, 1]
    await redis.aclose()


def _converted(clicks: ExampleRows, after_ms: int = 5_000) -> ExampleRows:
    rows = clicks.take(np.arange(len(clicks)))
    rows.kind[...] = CONVERSION
    rows.known_ms[...] = clicks.known_ms + after_ms
    return rows
