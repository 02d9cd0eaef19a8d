"""Topics made by hand, with what the broker takes for usual."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest
import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from stream.clicks.store import RedisClickStore
from stream.join.config import JoinConfig
from stream.join.runner import JoinRunner
from stream.kafka.admin import delete_topics, ensure_topics, topic_settings
from stream.kafka.broker import find_broker
from stream.kafka.input_record import InputRecord
from stream.kafka.log_writer import Outgoing, RecordRefusedError, open_writer, shared_writer
from stream.kafka.topic_settings import warn_of_unfit
from stream.metrics import WorkerMetrics
from stream.records.examples_codec import decode_examples
from stream.records.topics import CLICKS, DEADLETTER, EXAMPLES, IMPRESSIONS, SERVED
from stream.records.wire import DeadLetter
from stream.servers.settings import StreamSettings
from tests import brokers
from tests.stream.pipeline import SPEC, START_MS, events, serve, silent, values

LIMIT = 200_000  # bytes; a broker's own default is five times that
DISPLAYS = 3_000


@pytest.fixture
async def settings(apache_kafka: brokers.Broker) -> AsyncIterator[StreamSettings]:
    """Topics of one partition that take small records only."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    made = StreamSettings(kafka_bootstrap_servers=apache_kafka.bootstrap, partitions=1, topic_prefix=prefix)
    client = AIOKafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap)
    await client.start()
    limit = {"max.message.bytes": str(LIMIT)}
    await client.create_topics([NewTopic(t.name, t.partitions, 1, topic_configs=limit) for t in made.topics()])
    await client.close()
    await ensure_topics(apache_kafka.bootstrap, made.topics())  # they are there: it waits until they can be used
    yield made
    await delete_topics(apache_kafka.bootstrap, made.topics())


async def test_many_displays_at_once_go_into_records_that_the_topic_takes(
    settings: StreamSettings, redis_url: str
) -> None:
    """Their rows are more than one record holds; so is the payload of a dead letter."""
    broker = await find_broker(settings)
    shown = serve(range(1, DISPLAYS + 1), [START_MS] * DISPLAYS, 1, first_id=1)
    displays = [(key, START_MS + 100, user) for key, user in zip(shown.impression_id, shown.user_key, strict=True)]
    junk = b"\xff" * LIMIT
    async with Redis.from_url(redis_url) as redis:
        config, metrics = JoinConfig(), WorkerMetrics(CollectorRegistry())
        clicks = RedisClickStore(redis, SPEC, config.conversion_horizon_s)
        runner = JoinRunner(broker, clicks, SPEC, config, metrics, None)
        await runner.on_assigned(frozenset([0]))
        await runner.work(
            [
                InputRecord(SERVED, 0, 0, shown.record[0].encode(), START_MS),
                InputRecord(IMPRESSIONS, 0, 0, events(displays, START_MS + 60_000).encode(), START_MS),
                InputRecord(IMPRESSIONS, 0, 1, junk, START_MS),
                InputRecord(CLICKS, 0, 0, events([], START_MS + 60_000).encode(), START_MS),
                InputRecord(SERVED, 0, 1, junk, START_MS),
                InputRecord(SERVED, 0, 2, silent(START_MS + 60_000).encode(), START_MS),
            ]
        )
        await runner.on_revoked()
    rows = [decode_examples(value, SPEC)[0] for value in await values(broker, EXAMPLES)]
    assert sum(map(len, rows)) == DISPLAYS
    letters = [msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(broker, DEADLETTER)]
    assert [junk.startswith(one.payload) and len(one.payload) > 1_000 for one in letters] == [True, True]


@pytest.mark.parametrize("size", [LIMIT + 1, 9 << 20])
async def test_a_record_that_cannot_be_cut_is_refused_with_its_remedy(settings: StreamSettings, size: int) -> None:
    """With every writer, on the broker's word or the client's own; a transaction keeps nothing of what stood beside."""
    broker = await find_broker(settings)
    records = [Outgoing(EXAMPLES, b"small", partition=0), Outgoing(EXAMPLES, bytes(size), partition=0)]
    said = rf"{broker.topic(EXAMPLES)}: a record of {size} bytes was refused.*take \d+\..*max.message.bytes"
    owner = await open_writer(broker, f"{broker.prefix}owner")
    with pytest.raises(RecordRefusedError, match=said):
        await owner.write(records)
    await owner.close()
    assert await values(broker, EXAMPLES) == []
    async with shared_writer(broker) as shared:
        with pytest.raises(RecordRefusedError, match=said):
            await shared.write(records)


async def test_a_start_says_what_is_set_otherwise(settings: StreamSettings) -> None:
    """Topic, setting, both values, what comes of it, and the command."""
    found = await topic_settings(settings.kafka_bootstrap_servers or "", settings.topics())
    with structlog.testing.capture_logs() as lines:
        warn_of_unfit(settings.topics(), found)
    (line,) = (
        one for one in lines if (one["topic"], one["setting"]) == (settings.topic(EXAMPLES), "max.message.bytes")
    )
    assert (line["found"], line["needed"], line["log_level"]) == (str(LIMIT), str(8 << 20), "warning")
    assert "kafka-configs.sh" in line["remedy"]
    assert {one["setting"] for one in lines} == {"max.message.bytes", "cleanup.policy", "retention.ms"}
