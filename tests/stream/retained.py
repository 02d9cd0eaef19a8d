"""What retention does to a topic's readers, at once."""

from __future__ import annotations

from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete  # type: ignore[import-untyped]

from tests.brokers import TestTopics


async def retained_from(topics: TestTopics, topic: str, offset: int, partition: int = 0) -> None:
    """Delete all records before an offset; -1: of all that there are."""
    client = AIOKafkaAdminClient(bootstrap_servers=topics.broker.bootstrap)
    await client.start()
    try:
        tp = TopicPartition(topics.name(topic), partition)
        await client.delete_records({tp: RecordsToDelete(before_offset=offset)})
    finally:
        await client.close()
