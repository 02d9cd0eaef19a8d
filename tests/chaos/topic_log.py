"""What the topics hold: every committed record once; a reading goes on where the last one ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from stream.kafka.broker import Broker
from stream.kafka.log_reader import LogReader
from stream.records.topics import topic_table

TopicPartition = tuple[str, int]


class Stored(NamedTuple):
    """A record; ``produced_ms`` is the broker's time of it."""

    offset: int
    produced_ms: int
    value: bytes


class TopicLog:
    """Every partition of the topics that were asked for."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._partitions = {topic.name: topic.partitions for topic in topic_table(broker.partitions)}
        self._records: dict[TopicPartition, list[Stored]] = defaultdict(list)

    async def read_on(self, *topics: str) -> None:
        """Read these topics from where they were read to, up to their present ends."""
        async with LogReader(self._broker) as log:
            for topic in topics:
                for partition in range(self._partitions[topic]):
                    known = self._records[topic, partition]
                    start = known[-1].offset + 1 if known else 0
                    async for record in log.read(topic, partition, start):
                        self.take(topic, partition, Stored(record.offset, record.timestamp, record.value or b""))

    def take(self, topic: str, partition: int, record: Stored) -> None:
        """Hold one more record of a partition."""
        self._records[topic, partition].append(record)

    def partitions(self, topic: str) -> Iterator[tuple[int, list[Stored]]]:
        """Each partition of a topic with its records."""
        for partition in range(self._partitions[topic]):
            yield partition, self._records[topic, partition]

    def records(self, topic: str) -> Iterator[Stored]:
        """All records of a topic, partition by partition."""
        for _, records in self.partitions(topic):
            yield from records
