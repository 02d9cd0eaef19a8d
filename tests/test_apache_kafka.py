"""A real Kafka started by ourselves: what the embedded broker cannot do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from stream.embedded.process import ServerStartError
from stream.kafka.admin import ensure_topics
from stream.records.topics import EXAMPLES, topic_table
from tests.apache_kafka import ApacheKafka
from tests.brokers import Broker, TestTopics, skip_or_fail


async def test_a_folder_that_is_no_distribution_is_named(tmp_path: Path) -> None:
    """KAFKA_HOME pointing elsewhere is an error before anything is started."""
    with pytest.raises(ServerStartError, match=rf"KAFKA_HOME={tmp_path} holds no libs/kafka_"):
        await ApacheKafka(tmp_path).start()


async def test_its_log_survives_a_kill(tmp_path: Path) -> None:
    """A record that was acknowledged before SIGKILL is read after the next start on the same folder."""
    if not os.environ.get("KAFKA_HOME"):
        skip_or_fail("KAFKA_HOME is not set, so no Apache Kafka can be killed and started again")
    kafka = ApacheKafka(Path(os.environ["KAFKA_HOME"]), data_dir=tmp_path)
    try:
        await ensure_topics(await kafka.start(), topic_table(1))
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, enable_idempotence=True) as producer:
            await producer.send_and_wait(EXAMPLES, b"kept")
        await kafka.kill()
        await kafka.start()
        async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap) as consumer:
            consumer.assign([TopicPartition(EXAMPLES, 0)])
            await consumer.seek_to_beginning()
            assert (await consumer.getone()).value == b"kept"
    finally:
        await kafka.stop()


async def test_readers_of_committed_records_never_see_an_aborted_one(
    apache_kafka: Broker, kafka_topics: TestTopics
) -> None:
    """What the examples topic relies on: an aborted transaction leaves nothing for read_committed."""
    name = kafka_topics.name(EXAMPLES)
    async with AIOKafkaProducer(
        bootstrap_servers=apache_kafka.bootstrap, transactional_id=f"{kafka_topics.prefix}writer"
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"aborted", partition=0)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(name, b"committed", partition=0)
    async with AIOKafkaConsumer(bootstrap_servers=apache_kafka.bootstrap, isolation_level="read_committed") as consumer:
        consumer.assign([TopicPartition(name, 0)])
        await consumer.seek_to_beginning()
        assert (await consumer.getone()).value == b"committed"
