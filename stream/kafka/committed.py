"""What a consumer group has committed, with the metadata that travels with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from stream.kafka.broker import Broker

_PATIENCE_S = 60.0  # a broker that has just started loads its groups first
_RETRY_S = 0.2


async def committed_offsets(
    broker: Broker, group: str, topics: Sequence[str], partition: int
) -> dict[str, OffsetAndMetadata]:
    """What a group has committed of one partition of topics, by their names in the table; nothing for the others.

    Raises KafkaError when the group's coordinator does not answer for a minute.
    """
    partitions = {TopicPartition(broker.topic(topic), partition): topic for topic in topics}
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            found = await _committed(broker, group, list(partitions))
        except KafkaError as error:
            if not error.retriable or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_RETRY_S)
            continue
        return {partitions[tp]: at for tp, at in found.items() if at.offset >= 0}


async def _committed(
    broker: Broker, group: str, partitions: list[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap, **broker.options)
    await client.start()
    try:
        found: dict[TopicPartition, OffsetAndMetadata] = await client.list_consumer_group_offsets(
            group, partitions=partitions
        )
    finally:
        await client.close()
    return found
