"""Gaps in a partition's offsets, distinguished: transactions, records to fetch, records that retention took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import structlog
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry

from stream.kafka.broker import Broker, find_broker
from stream.kafka.gaps import CHECK_INTERVAL_S, LogGaps
from stream.kafka.log_reader import LogEndsEarlierError, LogReader
from stream.metrics import WorkerMetrics
from stream.records.topics import EXAMPLES
from tests.brokers import TestTopics
from tests.stream.measured import measured
from tests.stream.retained import retained_from


@asynccontextmanager
async def transactional(topics: TestTopics) -> AsyncIterator[AIOKafkaProducer]:
    """A producer of transactions."""
    name = f"{topics.prefix}writer"
    async with AIOKafkaProducer(bootstrap_servers=topics.broker.bootstrap, transactional_id=name) as producer:
        yield producer


async def written(topics: TestTopics, values: Sequence[bytes], *, rolled_back: bool = False) -> None:
    """One transaction of partition 0."""
    async with transactional(topics) as producer:
        await producer.begin_transaction()
        for value in values:
            await producer.send_and_wait(topics.name(EXAMPLES), value, partition=0)
        await (producer.abort_transaction() if rolled_back else producer.commit_transaction())


def watched(broker: Broker) -> tuple[LogGaps, WorkerMetrics]:
    """Gaps of the examples, as the archiver has them."""
    metrics = WorkerMetrics(CollectorRegistry())
    return LogGaps(broker, EXAMPLES, metrics.counter("archive_lost_records_total"), "archived"), metrics


def lost(metrics: WorkerMetrics) -> float:
    """How many offsets are counted as lost."""
    return measured(metrics, "archive_lost_records_total")


async def missed(gaps: LogGaps, next_offset: int, offset: int) -> list[bytes]:
    """The records that must be taken before one of partition 0."""
    return [record.value async for record in gaps.before(0, next_offset, offset)]


@pytest.mark.usefixtures("apache_kafka")
async def test_a_read_of_nothing_but_the_ends_of_transactions_ends(kafka_topics: TestTopics) -> None:
    """Whatever range is asked for, and although a transaction is open: none of it is waited for."""
    await written(kafka_topics, [b"0"])  # its end: 1
    await written(kafka_topics, [b"2", b"3"], rolled_back=True)  # 4
    await written(kafka_topics, [b"5"])  # 6
    broker = await find_broker(kafka_topics.settings())
    async with transactional(kafka_topics) as producer, LogReader(broker) as log:
        await producer.begin_transaction()
        await producer.send_and_wait(kafka_topics.name(EXAMPLES), b"7", partition=0)
        for start, stop, found in (
            (1, 2, []),
            (1, 5, []),
            (2, 4, []),
            (1, 6, [b"5"]),
            (6, 7, []),
            (0, None, [b"0", b"5"]),
            (6, None, []),
            (7, None, []),
        ):
            async with asyncio.timeout(2):
                read = [record.value async for record in log.read(EXAMPLES, 0, start, stop=stop)]
            assert read == found, (start, stop)
        await producer.commit_transaction()
        assert [record.value async for record in log.read(EXAMPLES, 0, 6)] == [b"7"]


@pytest.mark.usefixtures("apache_kafka")
async def test_what_was_written_is_waited_for(kafka_topics: TestTopics) -> None:
    """A commit is answered before its end stands in the partition; what is left out then, nobody reads again."""
    name = kafka_topics.name(EXAMPLES)
    broker = await find_broker(kafka_topics.settings())

    async def read(log: LogReader) -> list[bytes]:
        return [record.value async for record in log.read(EXAMPLES, 0, 0, written_to=2)]

    async with transactional(kafka_topics) as slow, LogReader(broker) as log:
        await slow.begin_transaction()
        await slow.send_and_wait(name, b"0", partition=0)
        async with AIOKafkaProducer(bootstrap_servers=kafka_topics.broker.bootstrap) as producer:
            await producer.send_and_wait(name, b"1", partition=0)
        reading = asyncio.create_task(read(log))
        await asyncio.sleep(0.5)
        assert not reading.done()
        await slow.commit_transaction()
        async with asyncio.timeout(10):
            assert await reading == [b"0", b"1"]


async def test_what_was_written_and_is_gone_is_said(kafka_topics: TestTopics, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that ends before it has been cut off, or is another one: to go on would lose what is missing."""
    monkeypatch.setattr("stream.kafka.log_reader._READABLE_WITHIN_S", 0.5)
    async with AIOKafkaProducer(bootstrap_servers=kafka_topics.broker.bootstrap) as producer:
        await producer.send_and_wait(kafka_topics.name(EXAMPLES), b"0", partition=0)
    async with LogReader(await find_broker(kafka_topics.settings())) as log:
        with pytest.raises(LogEndsEarlierError, match="ends before offset 2"):
            assert [record.value async for record in log.read(EXAMPLES, 0, 0, written_to=2)] == [b"0"]


async def test_the_first_record_of_an_assignment_shows_what_is_to_be_fetched(kafka_topics: TestTopics) -> None:
    """The group had committed more than the reader holds; of a later gap nothing is read, nor of a record known."""
    async with AIOKafkaProducer(bootstrap_servers=kafka_topics.broker.bootstrap) as producer:
        for number in range(5):
            await producer.send_and_wait(kafka_topics.name(EXAMPLES), b"%d" % number, partition=0)
    gaps, metrics = watched(await find_broker(kafka_topics.settings()))
    gaps.assigned({0, 1})
    assert await missed(gaps, 1, 4) == [b"1", b"2", b"3"]
    assert await missed(gaps, 1, 4) == []
    gaps.assigned({0})
    assert await missed(gaps, 3, 3) == []  # it is the next one: nothing is missing, and its assignment has begun
    assert await missed(gaps, 1, 4) == []
    await gaps.check(0.0)
    assert lost(metrics) == 0


@pytest.mark.usefixtures("apache_kafka")
async def test_ends_of_transactions_are_no_loss_and_cost_nothing(kafka_topics: TestTopics) -> None:
    """Every record comes after a gap: the broker is asked about all of them once a second."""
    for number in range(3):
        await written(kafka_topics, [b"%d" % number])
    gaps, metrics = watched(await find_broker(kafka_topics.settings()))
    gaps.assigned({0})
    began = time.perf_counter()
    for _ in range(10_000):
        for offset in (2, 4):
            assert await missed(gaps, offset - 1, offset) == []
        await gaps.check(1.0)
    assert time.perf_counter() - began < 3
    await gaps.check(1.0 + CHECK_INTERVAL_S)
    assert lost(metrics) == 0
    assert gaps.unchecked == 0


@pytest.mark.usefixtures("apache_kafka")
async def test_what_retention_took_is_counted_once_and_reported(kafka_topics: TestTopics) -> None:
    """Before the first record, under way, or where the reader reads by itself; up to what there is, or what came."""
    await written(kafka_topics, [b"%d" % number for number in range(10)])
    gaps, metrics = watched(await find_broker(kafka_topics.settings()))
    await retained_from(kafka_topics, EXAMPLES, 4)
    gaps.assigned({0})
    with structlog.testing.capture_logs() as logs:
        assert await missed(gaps, 1, 6) == [b"4", b"5"]
        assert lost(metrics) == 3
        await retained_from(kafka_topics, EXAMPLES, 9)
        assert await missed(gaps, 7, 9) == []  # the consumer was put to the oldest offset
        assert await missed(gaps, 10, 11) == []  # the end of the transaction
        await gaps.check(0.0)
        await gaps.check(5.0)
        assert lost(metrics) == 5
        gaps.begins(0, 2, 8)
        assert lost(metrics) == 5
        gaps.begins(0, 9, 11)
        assert lost(metrics) == 7
    assert [entry["offsets"] for entry in logs] == [(1, 4), (7, 9), (9, 11)]
    assert all("before they were archived" in entry["event"] and "retention.ms" in entry["remedy"] for entry in logs)


@pytest.mark.usefixtures("apache_kafka")
@pytest.mark.parametrize("oldest", [2, 3])
async def test_a_record_behind_the_oldest_offset_bounds_the_loss(oldest: int, kafka_topics: TestTopics) -> None:
    """What was read before retention took it is not lost."""
    await written(kafka_topics, [b"%d" % number for number in range(4)])
    gaps, metrics = watched(await find_broker(kafka_topics.settings()))
    await missed(gaps, 1, 2)
    await retained_from(kafka_topics, EXAMPLES, oldest)
    await gaps.check(0.0)
    assert lost(metrics) == 1
