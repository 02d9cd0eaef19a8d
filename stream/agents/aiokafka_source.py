"""A source on aiokafka alone: a loop over `getmany`, for inputs of one event a record, of which Faust takes 15 k/s."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import ConsumerRebalanceListener  # type: ignore[import-untyped]
from aiokafka import TopicPartition as BrokerPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor  # type: ignore[import-untyped]
from aiokafka.errors import CommitFailedError, IllegalStateError  # type: ignore[import-untyped]

from stream.agents.source import Listener
from stream.kafka.aiokafka_internals import unread_records
from stream.kafka.broker import Broker
from stream.kafka.input_record import InputRecord, TopicPartition

_MAX_FETCH_RECORDS = 2_000  # what a step may hold beyond the inbox's bound
_POLL_MS = 200
_MAX_POLL_MS = 24 * 3_600_000  # a full inbox is no reason to leave the group: the heartbeat shows that we live


class AiokafkaSource:
    """A group member of aiokafka's; parameters as of `FaustSource`."""

    def __init__(
        self,
        group: str,
        broker: Broker,
        topics: Sequence[str],
        assignor: type[Any] = RangePartitionAssignor,
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._paused: frozenset[TopicPartition] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self._consumer = broker.consumer(
            group_id=group,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=4 << 20,
            session_timeout_ms=round(broker.session_timeout_s * 1000),
            heartbeat_interval_ms=round(broker.session_timeout_s * 250),
            max_poll_interval_ms=_MAX_POLL_MS,
            partition_assignment_strategy=(assignor,),
        )

    async def start(self, listener: Listener) -> None:
        """Join the group."""
        self._consumer.subscribe(
            [self._broker.topic(topic) for topic in self._topics], listener=_Rebalances(self, listener)
        )
        await self._consumer.start()
        self._task = asyncio.create_task(self._read(listener))

    async def stop(self) -> None:
        """Leave the group."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.stop()

    @property
    def failure(self) -> BaseException | None:
        """What ended the loop, None while it runs."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception() or RuntimeError("the loop over the consumer has ended")

    def assignment(self) -> frozenset[TopicPartition]:
        """What is read."""
        return frozenset(self._from_broker(tp) for tp in self._consumer.assignment())

    def unread(self) -> Mapping[TopicPartition, int]:
        """How many records of each partition were not handed on yet, as of the last fetch."""
        unread = unread_records(self._consumer, self._consumer.assignment())
        return {self._from_broker(tp): count for tp, count in unread.items()}

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit offsets; False when the group is rebalancing and they were not taken."""
        named = {self._to_broker(tp): offset for tp, offset in offsets.items()}
        try:
            await self._consumer.commit(named)
        except (CommitFailedError, IllegalStateError):
            return False
        return True

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        """Read nothing more of these partitions, and of all others again."""
        ours = self.assignment()
        self._consumer.pause(*map(self._to_broker, (partitions - self._paused) & ours))
        self._consumer.resume(*map(self._to_broker, (self._paused - partitions) & ours))
        self._paused = partitions

    async def seek(self, tp: TopicPartition, offset: int) -> None:
        """Go on reading a partition there."""
        with suppress(IllegalStateError):
            self._consumer.seek(self._to_broker(tp), offset)

    def forget_paused(self) -> None:
        """Whatever is assigned next is not paused."""
        self._paused = frozenset()

    async def _read(self, listener: Listener) -> None:
        while True:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_MAX_FETCH_RECORDS)
            for tp, records in fetched.items():
                topic = self._broker.table_name(tp.topic)
                await listener.arrived([InputRecord.of(topic, one) for one in records])

    def _to_broker(self, tp: TopicPartition) -> BrokerPartition:
        return BrokerPartition(self._broker.topic(tp[0]), tp[1])

    def _from_broker(self, tp: BrokerPartition) -> TopicPartition:
        return self._broker.table_name(tp.topic), tp.partition


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, source: AiokafkaSource, listener: Listener) -> None:
        self._source = source
        self._listener = listener

    async def on_partitions_revoked(self, revoked: Iterable[BrokerPartition]) -> None:
        if list(revoked):
            await self._listener.revoked()

    def on_partitions_assigned(self, assigned: Iterable[BrokerPartition]) -> None:
        self._source.forget_paused()
        self._listener.assigned(frozenset(tp.partition for tp in assigned))
