"""Topics on a real broker: created, compared, refused."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.errors import NodeNotReadyError  # type: ignore[import-untyped]

from stream.embedded.process import free_port
from stream.kafka.admin import (
    BrokerUnreachableError,
    Difference,
    TopicMismatchError,
    check_topics,
    cluster_id,
    delete_topics,
    ensure_topics,
)
from stream.records.topics import Topic, topic_table
from tests.brokers import Broker


@pytest.fixture
async def table(broker: Broker) -> AsyncIterator[tuple[Topic, ...]]:
    """A table whose topics do not exist yet."""
    topics = topic_table(3, prefix=f"a{uuid.uuid4().hex[:8]}.")
    yield topics
    await delete_topics(broker.bootstrap, topics)


async def test_missing_topics_are_created_once(broker: Broker, table: tuple[Topic, ...]) -> None:
    """The first call creates all, the second nothing, and then the broker equals the table."""
    assert await ensure_topics(broker.bootstrap, table) == [topic.name for topic in table]
    assert await ensure_topics(broker.bootstrap, table) == []
    assert await check_topics(broker.bootstrap, table) == []


async def test_only_what_is_missing_is_created(broker: Broker, table: tuple[Topic, ...]) -> None:
    """Topics that exist already are left alone."""
    await ensure_topics(broker.bootstrap, table[:2])
    assert await ensure_topics(broker.bootstrap, table) == [topic.name for topic in table[2:]]


async def test_check_names_missing_topics_and_creates_none(broker: Broker, table: tuple[Topic, ...]) -> None:
    """Checking an empty broker reports every topic, twice the same."""
    expected = [Difference(topic.name, "topic", "present", "missing") for topic in table]
    assert await check_topics(broker.bootstrap, table) == expected
    assert await check_topics(broker.bootstrap, table) == expected


async def test_a_broker_that_is_away_is_passed_over_for_another(
    broker: Broker, table: tuple[Topic, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client draws one of all that the cluster has; the first two times, each kind of request meets a dead one."""
    send, refused = AIOKafkaClient.send, Counter[str]()

    async def dead_at_first(client: AIOKafkaClient, node: int, request: Any, **options: Any) -> Any:
        kind = type(request).__name__
        refused[kind] += 1
        if refused[kind] <= 2:
            raise NodeNotReadyError(f"node {node}")
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", dead_at_first)
    assert await ensure_topics(broker.bootstrap, table) == [topic.name for topic in table]
    assert {kind for kind, count in refused.items() if count > 2} >= {"MetadataRequest", "CreateTopicsRequest"}
    refused.clear()
    assert await check_topics(broker.bootstrap, table) == []
    refused.clear()
    await cluster_id(broker.bootstrap)


async def test_another_partition_count_is_an_error_that_names_both(broker: Broker, table: tuple[Topic, ...]) -> None:
    """Topics with another partition count stop the start: rows would land where their partners are not."""
    await ensure_topics(broker.bootstrap, table)
    other = topic_table(5, prefix=table[0].name.removesuffix("ads.served.v1"))
    with pytest.raises(TopicMismatchError, match=r"has 3 partitions, the table says 5.*MILLSTREAM_PARTITIONS"):
        await ensure_topics(broker.bootstrap, other)
    assert Difference(table[0].name, "partitions", "5", "3") in await check_topics(broker.bootstrap, other)


async def test_another_setting_is_a_difference(apache_kafka: Broker, table: tuple[Topic, ...]) -> None:
    """A topic that someone made with other retention or limits is reported setting by setting."""
    bare = [
        Topic(
            name=topic.name,
            partitions=topic.partitions,
            replication_factor=1,
            cleanup_policy="delete",
            retention_ms=1000,
            max_message_bytes=2000,
            key="",
            doc="",
        )
        for topic in table
    ]
    await ensure_topics(apache_kafka.bootstrap, bare)
    found = await check_topics(apache_kafka.bootstrap, table)
    assert Difference(table[0].name, "retention.ms", str(table[0].retention_ms), "1000") in found
    assert [d.topic for d in found if d.what == "cleanup.policy"] == [
        t.name for t in table if t.cleanup_policy == "compact"
    ]
    assert len([d for d in found if d.what == "max.message.bytes"]) == len(table)


async def test_more_replicas_than_brokers_are_refused_by_name(apache_kafka: Broker) -> None:
    """The broker's refusal comes with its reason and the variable to set."""
    table = topic_table(1, replication_factor=99, prefix=f"a{uuid.uuid4().hex[:8]}.")
    with pytest.raises(TopicMismatchError, match=r"refused to create .*MILLSTREAM_REPLICATION_FACTOR"):
        await ensure_topics(apache_kafka.bootstrap, table)


async def test_a_broker_that_is_not_there_is_named_with_the_remedy() -> None:
    """The error says the address, the time waited, the consequence and what to set."""
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnreachableError, match=rf"at {address} within 1 s.*KAFKA_BOOTSTRAP_SERVERS"):
        await ensure_topics(address, topic_table(1), timeout_s=1.0)
