"""What a consumer group has committed, with the metadata that travels with it."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from stream.broker import Broker


async def committed_offsets(
    broker: Broker, group: str, topics: Sequence[str], partition: int
) -> dict[str, OffsetAndMetadata]:
    """What a group has committed of one partition of topics, by their names in the table; nothing for the others."""
    places = {TopicPartition(broker.topic(topic), partition): topic for topic in topics}
    client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap, **broker.options)
    await client.start()
    try:
        found = await client.list_consumer_group_offsets(group, partitions=list(places))
    finally:
        await client.close()
    return {places[place]: at for place, at in found.items() if at.offset >= 0}
