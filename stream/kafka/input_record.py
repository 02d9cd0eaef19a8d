"""One record as a consumer read it, and where it stood."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

TopicPartition = tuple[str, int]
"""A topic, by its name in the table, and a partition."""


class InputRecord(NamedTuple):
    """One record as it was read; ``produced_ms`` is its Kafka timestamp (wall clock).

    ``leader_epoch`` counts the partition's leaders up to the one that took the record; -1: the broker did not say.
    """

    topic: str
    partition: int
    offset: int
    value: bytes | None
    produced_ms: int
    content_type: str | None = None
    leader_epoch: int = -1

    @classmethod
    def of(cls, topic: str, record: Any) -> InputRecord:
        """A record of aiokafka's, of a topic by its name in the table."""
        content_type = _content_type(record.headers) if record.headers else None
        where = (topic, record.partition, record.offset)
        return cls(*where, record.value, record.timestamp, content_type, record.leader_epoch)

    @property
    def topic_partition(self) -> TopicPartition:
        """The log it stood in."""
        return self.topic, self.partition


def _content_type(headers: Iterable[tuple[str, bytes]]) -> str | None:
    found = next((value for name, value in headers if name == "content-type"), None)
    return None if found is None else found.decode("latin-1")
