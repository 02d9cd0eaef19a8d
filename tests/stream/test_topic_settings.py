"""Retention and compaction as the broker has them: the table's settings hold, and do what they are there for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]

from stream.kafka.admin import check_topics, ensure_topics
from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.records.topics import CALIBRATION, CLICKS, topic_table
from stream.records.wire import CalibrationRecord
from stream.servers.settings import StreamSettings
from tests.apache_kafka import ApacheKafka
from tests.brokers import Broker, TestTopics, skip_or_fail
from tests.stream.retained import retained_from

QUICK = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}  # so that cleaning need not be waited for


async def described(bootstrap: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Settings and partition counts of topics, as the running broker tells them."""
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        found: dict[str, dict[str, Any]] = {}
        for response in await client.describe_configs(resources):
            for code, _, _, name, entries in response.resources:
                assert code == 0
                found[name] = {entry[0]: entry[1] for entry in entries}
        for topic in await client.describe_topics(names):
            found[topic["topic"]]["partitions"] = len(topic["partitions"])
    finally:
        await client.close()
    return found


async def test_every_topic_of_a_running_broker_is_as_the_table_says(
    apache_kafka: Broker, kafka_topics: TestTopics
) -> None:
    """Cleanup, retention, greatest record and partitions of all nine; nothing is left to the broker's defaults."""
    found = await described(apache_kafka.bootstrap, [topic.name for topic in kafka_topics.table])
    wanted = {topic.name: topic.config() | {"partitions": topic.partitions} for topic in kafka_topics.table}
    assert {name: {key: found[name][key] for key in row} for name, row in wanted.items()} == wanted
    assert len(wanted) == 9
    assert await check_topics(apache_kafka.bootstrap, kafka_topics.table) == []


async def test_a_setting_that_was_changed_later_is_reported(apache_kafka: Broker, kafka_topics: TestTopics) -> None:
    """Somebody shortened one topic's retention: this setting of this topic differs, and no other."""
    clicks = next(topic for topic in kafka_topics.table if topic.name == kafka_topics.name(CLICKS))
    client = AIOKafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap)
    await client.start()
    changed = ConfigResource(ConfigResourceType.TOPIC, clicks.name, configs=clicks.config() | {"retention.ms": "60000"})
    await client.alter_configs([changed])
    await client.close()
    async with asyncio.timeout(10):  # the broker hears of it from the controller
        while not (found := await check_topics(apache_kafka.bootstrap, kafka_topics.table)):
            await asyncio.sleep(0.05)
    assert ", ".join(map(str, found)) == f"{clicks.name}: retention.ms is 60000, the table says {clicks.retention_ms}"


async def test_readers_of_what_retention_left_begin_there(apache_kafka: Broker, kafka_topics: TestTopics) -> None:
    """The oldest offset moves; a read from before it gets the rest, one from behind the end is still refused."""
    broker = await find_broker(kafka_topics.settings())
    async with shared_writer(broker) as writer:
        await writer.write([Outgoing(CLICKS, b"%d" % number, partition=0) for number in range(5)])
    await retained_from(kafka_topics, CLICKS, 3)
    async with LogReader(broker) as log:
        assert await log.oldest(CLICKS, 0) == 3
        for start in (0, 2, 3):
            assert [record.value async for record in log.read(CLICKS, 0, start)] == [b"3", b"4"]
        assert [record.value async for record in log.read(CLICKS, 0, stop=2)] == []


@pytest.mark.e2e
async def test_the_calibration_topic_keeps_the_newest_state_of_each_partition(tmp_path: Path) -> None:
    """The table's settings, only cleaned sooner: older states go, the newest of every key stays and can be read."""
    if not (home := os.environ.get("KAFKA_HOME")):
        skip_or_fail("KAFKA_HOME is not set: only an Apache Kafka started here can be told to clean at once")
        return
    async with ApacheKafka(Path(home), properties={"log.cleaner.backoff.ms": "100"}) as kafka:
        settings = StreamSettings(kafka_bootstrap_servers=kafka.bootstrap, partitions=2)
        (topic,) = (one for one in topic_table(2) if one.name == CALIBRATION)
        client = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await client.start()
        new = NewTopic(topic.name, topic.partitions, topic.replication_factor, topic_configs=topic.config() | QUICK)
        await client.create_topics([new])
        await client.close()
        await ensure_topics(kafka.bootstrap, topic_table(2))
        assert await check_topics(kafka.bootstrap, topic_table(2)) == []
        broker = await find_broker(settings)
        async with shared_writer(broker) as writer:
            for version in range(1, 31):
                for partition in (0, 1):
                    value = msgspec.msgpack.encode(state(partition, version))
                    await writer.write([Outgoing(CALIBRATION, value, key=b"%d" % partition)])
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)  # the segment's time is over: the next record begins another
            await writer.write([Outgoing(CALIBRATION, msgspec.msgpack.encode(state(2, 1)), key=b"2")])
        async with LogReader(broker) as log, asyncio.timeout(20):
            while len(kept := [states(record.value) async for record in log.read(CALIBRATION, 0)]) > 3:
                await asyncio.sleep(0.1)
        assert kept == [(0, 30), (1, 30), (2, 1)]


def state(partition: int, version: int) -> CalibrationRecord:
    """A calibrator's state of a few kilobytes."""
    return CalibrationRecord(
        partition=partition, version=version, rows=1, watermark_ms=1, state=bytes(4_000), next_offset=1
    )


def states(value: bytes) -> tuple[int, int]:
    """Partition and version of a record."""
    record = msgspec.msgpack.decode(value, type=CalibrationRecord)
    return record.partition, record.version
