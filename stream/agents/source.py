"""Where an agent's records come from: a member of a consumer group, whatever library it runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from stream.kafka.input_record import InputRecord, TopicPartition

SourceKind = Literal["faust", "aiokafka"]


class Listener(Protocol):
    """What a source calls."""

    async def arrived(self, records: Sequence[InputRecord]) -> None:
        """These were read, some of one partition in their order; returns once there is room for more."""
        ...

    def assigned(self, partitions: frozenset[int]) -> None:
        """These partitions are ours from here on."""
        ...

    async def revoked(self) -> None:
        """All partitions are to be given up; they are assigned again, here or elsewhere, once this returns."""
        ...


class Source(Protocol):
    """A member of a consumer group that reads all topics of a runner."""

    async def start(self, listener: Listener) -> None:
        """Join the group."""
        ...

    async def stop(self) -> None:
        """Leave the group."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """Why nothing more will be read, None while it works."""
        ...

    def assignment(self) -> frozenset[TopicPartition]:
        """What is read."""
        ...

    def unread(self) -> Mapping[TopicPartition, int]:
        """How many records of each partition were not handed on yet, as of the last fetch."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit offsets; False when the group is rebalancing and they were not taken."""
        ...

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        """Read nothing more of these partitions, and of all others again."""
        ...

    async def seek(self, tp: TopicPartition, offset: int) -> None:
        """Go on reading a partition there; what was fetched already may still come first. Nothing if it is not ours."""
        ...
