"""Compressed batches on a real broker: read as ever, or passed over with a record in their place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry

from stream.kafka.bounded_fetch import bound_fetches
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord
from stream.kafka.log_reader import LogReader
from stream.learn.config import LearningConfig
from stream.learn.runner import LearnRunner
from stream.metrics import WorkerMetrics
from stream.records.topics import CLICKS, DEADLETTER, EXAMPLES
from stream.records.wire import DeadLetter
from tests.brokers import TestTopics
from tests.stream.measured import measured
from tests.stream.pipeline import SPEC, START_MS, base_snapshot, example_rows, values

MIB = 1 << 20


@asynccontextmanager
async def compressing(broker: Broker, codec: str) -> AsyncIterator[AIOKafkaProducer]:
    """A producer that hides what it likes in a batch."""
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap, compression_type=codec, max_request_size=1 << 30, max_batch_size=1 << 30
    ) as producer:
        yield producer


async def send_batch(producer: AIOKafkaProducer, topic: str, records: list[bytes]) -> None:
    """All in one batch of partition 0."""
    batch = producer.create_batch()
    for value in records:
        assert batch.append(key=None, value=value, timestamp=None) is not None
    batch.close()
    await (await producer.send_batch(batch, topic, partition=0))


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_batch_that_inflates_beyond_the_bound_is_passed_over(codec: str, kafka_topics: TestTopics) -> None:
    """One record in its place tells codec, offsets and sizes; those before and after it are read, from any offset."""
    broker = await find_broker(kafka_topics.settings())
    async with compressing(broker, codec) as producer:
        topic = kafka_topics.name(EXAMPLES)
        for records in ([b"one", b"two"], [bytes(35 * MIB), b"small", bytes(35 * MIB)], [b"three"]):
            await send_batch(producer, topic, records)
    async with LogReader(broker) as log:
        found = [(record.offset, record.value) async for record in log.read(EXAMPLES, 0)]
        assert [(at, value) for at, value in found if at != 2] == [(0, b"one"), (1, b"two"), (5, b"three")]
        (said,) = (value.decode("latin-1") for at, value in found if at == 2)
        assert said.startswith("\xc1offsets 2 to 4 cannot be unpacked")
        assert f"bytes of {codec} do not inflate to at most 67108864 bytes" in said
        for start in (3, 4):  # as after a commit behind the record in its place
            assert [record.offset async for record in log.read(EXAMPLES, 0, start)] == [5]


async def test_a_fetch_is_cut_where_its_batches_inflate_beyond_the_bound_together(kafka_topics: TestTopics) -> None:
    """Each batch may be large, and all are read: the next fetch goes on behind the last one."""
    broker = await find_broker(kafka_topics.settings())
    async with compressing(broker, "zstd") as producer:
        for number in range(6):
            await send_batch(producer, kafka_topics.name(EXAMPLES), [bytes([number]) * (30 * MIB)])
    tp = TopicPartition(kafka_topics.name(EXAMPLES), 0)
    fetches: list[list[tuple[int, int]]] = []
    async with AIOKafkaConsumer(bootstrap_servers=broker.bootstrap) as consumer:
        consumer.assign([tp])
        await consumer.seek_to_beginning()
        async with asyncio.timeout(30):
            while sum(map(len, fetches)) < 6:
                fetched = (await consumer.getmany(tp, timeout_ms=100)).get(tp, [])
                fetches.append([(record.offset, record.value[0]) for record in fetched])
    assert [seen for fetch in fetches for seen in fetch] == [(number, number) for number in range(6)]
    assert max(map(len, fetches)) == 3


async def test_the_learner_puts_such_a_batch_aside_and_goes_on(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """The dead letter says where and why; its payload is the reason, not the batch."""
    base_snapshot(tmp_path)
    broker = await find_broker(kafka_topics.settings())
    good = [example_rows(8, seed=at).to_record(SPEC.hash, START_MS).encode() for at in range(2)]
    async with compressing(broker, "zstd") as producer:
        for value in (good[0], bytes(70 * MIB), good[1]):
            await send_batch(producer, kafka_topics.name(EXAMPLES), [value])
    metrics = WorkerMetrics(CollectorRegistry())
    runner = LearnRunner(broker, SPEC, LearningConfig(learn_batch_rows=8), str(tmp_path), metrics)
    await runner.on_assigned(frozenset(range(broker.partitions)))
    async with LogReader(broker) as log:
        async for record in log.read(EXAMPLES, 0):
            await runner.work([InputRecord(EXAMPLES, 0, record.offset, record.value, START_MS)])
    assert measured(metrics, "learned_rows_total") == 2 * 8
    await runner.on_revoked()
    (letter,) = (msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(broker, DEADLETTER))
    assert (letter.topic, letter.partition, letter.offset, letter.reason) == (EXAMPLES, 0, 1, "malformed")
    assert b"offsets 1 to 1 cannot be unpacked" in letter.payload


async def test_a_reader_of_its_own_is_bound_too(kafka_topics: TestTopics) -> None:
    """Every consumer of the process, Faust's among them, reads through the same fetcher."""
    bound_fetches()
    bound_fetches()  # once is enough, twice is no other
    broker = await find_broker(kafka_topics.settings())
    async with compressing(broker, "gzip") as producer:
        await send_batch(producer, kafka_topics.name(CLICKS), [bytes(65 * MIB)])
    tp = TopicPartition(kafka_topics.name(CLICKS), 0)
    async with AIOKafkaConsumer(bootstrap_servers=broker.bootstrap) as consumer:
        consumer.assign([tp])
        await consumer.seek_to_beginning()
        assert (await consumer.getone()).value.startswith(b"\xc1offsets 0 to 0 cannot be unpacked")
        assert await consumer.position(tp) == 1
