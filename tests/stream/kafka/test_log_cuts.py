"""Whether a log is still the one that was read, on a real broker; that of a broker which died: tests/hostile."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord
from stream.kafka.log_cuts import LogWatch, ReadUpTo, find_cut, report_cut
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.metrics import WorkerMetrics
from stream.records.topics import CLICKS
from tests import brokers
from tests.brokers import TestTopics
from tests.stream.created_again import created_again
from tests.stream.measured import measured


async def written(broker: Broker, count: int) -> list[InputRecord]:
    """Records of partition 0, as they are read after some more of them were written."""
    async with shared_writer(broker) as writer:
        await writer.write([Outgoing(CLICKS, b"one", partition=0) for _ in range(count)])
    async with LogReader(broker) as log:
        return [InputRecord.of(CLICKS, record) async for record in log.read(CLICKS, 0)]


async def test_a_log_that_only_grew_is_the_one_that_was_read(kafka_topics: TestTopics) -> None:
    """Whatever was read of it, with its epoch or without."""
    broker = await find_broker(kafka_topics.settings())
    read = [ReadUpTo.after(record) for record in await written(broker, 3)]
    await written(broker, 2)
    async with LogReader(broker) as log:
        for one in (*read, ReadUpTo(5), ReadUpTo(0)):
            assert await find_cut(log, CLICKS, 0, one) is None


async def test_a_log_that_ends_before_what_was_read_is_another(
    kafka_topics: TestTopics, apache_kafka: brokers.Broker
) -> None:
    """With no more known than an offset, all that it holds is new; it is counted and said."""
    broker = await find_broker(kafka_topics.settings())
    await written(broker, 3)
    async with LogReader(broker) as log:
        cut = await find_cut(log, CLICKS, 0, ReadUpTo(10))
    assert cut is not None
    assert (cut.offset, cut.gone) == (0, 10)
    metrics = WorkerMetrics(CollectorRegistry())
    report_cut(cut, metrics.counter("log_cut_records_total", agent="join", topic=CLICKS))
    assert measured(metrics, "log_cut_records_total", agent="join", topic=CLICKS) == 10


@pytest.mark.parametrize("again", [2, 4, 6])
async def test_a_topic_that_was_created_again_is_read_from_its_beginning(
    kafka_topics: TestTopics, apache_kafka: brokers.Broker, again: int
) -> None:
    """Its leaders count from 0 as before, and it may have grown beyond what was read: the times of records tell."""
    broker = await find_broker(kafka_topics.settings())
    watch = LogWatch(broker)
    records = await written(broker, 4)
    assert await watch.cut_before(records) is None
    await created_again(kafka_topics)
    cut = await watch.cut_before(await written(broker, again))
    assert cut is not None
    assert (cut.offset, cut.read) == (0, ReadUpTo.after(records[-1]))


async def test_records_that_are_read_again_are_no_cut(kafka_topics: TestTopics) -> None:
    """A rebalance brings them, from the commit on."""
    broker = await find_broker(kafka_topics.settings())
    watch, records = LogWatch(broker), await written(broker, 4)
    assert await watch.cut_before(records) is None
    assert await watch.cut_before(records[1:]) is None
    assert await watch.cut_before(await written(broker, 1)) is None
