"""Reading a topic's partition from an offset to its present end, for what is rebuilt at a start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError, OffsetOutOfRangeError  # type: ignore[import-untyped]

from stream.kafka.broker import Broker
from stream.kafka.leader_epochs import epoch_end
from stream.records.columns import RecordError
from stream.servers.logs import RateLimitedLog

_POLL_MS = 100
_FETCH_WAIT_MS = 20  # what is read is there already; a broker that waits for more answers nothing else meanwhile
_REACHABLE_WITHIN_S = 8.0  # a way that is cut for longer ends the worker, which must be able to stop within 10 s
_RETRY_S = 0.2
_READABLE_WITHIN_S = 30.0  # twice the time after which the broker rolls a transaction back


_T = TypeVar("_T")


class RecordRejects:
    """Counts and says which records of the stream's own topics were put aside.

    Parameters
    ----------
    count : called with the topic, by its name in the table, and the reason of each.
    """

    def __init__(self, count: Callable[[str, str], None] = lambda _topic, _reason: None) -> None:
        self._count = count
        self._report = RateLimitedLog()

    def __call__(self, topic: str, partition: int, offset: int, error: RecordError) -> None:
        """One was put aside."""
        self._count(topic, error.reason)
        self._report(
            "a record was put aside: no program of this stream writes such a one",
            record=f"{topic}[{partition}] {offset}",
            reason=error.reason,
            detail=error.detail,
            remedy="look who else may write to this topic; all else goes on as if it were not there",
        )


class LogEndsEarlierError(RuntimeError):
    """A partition ends before the offset from which it is to be read: it is not the log that was written then."""


class LogReader:
    """A consumer outside of any group: `async with LogReader(broker) as log: async for record in log.read(...)`."""

    def __init__(self, broker: Broker, rejects: RecordRejects | None = None) -> None:
        self.rejects = rejects or RecordRejects()
        self._broker = broker
        self._consumer = self._new_consumer()

    async def __aenter__(self) -> Self:
        """Connect. Raises KafkaConnectionError when no broker can be reached for `_REACHABLE_WITHIN_S`."""
        deadline = time.monotonic() + _REACHABLE_WITHIN_S
        while True:
            try:
                await self._consumer.start()
            except KafkaConnectionError:
                await self._consumer.stop()
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_S)
                self._consumer = self._new_consumer()
            else:
                return self

    def _new_consumer(self) -> AIOKafkaConsumer:
        return self._broker.consumer(
            auto_offset_reset="none", fetch_max_wait_ms=_FETCH_WAIT_MS, max_partition_fetch_bytes=8 << 20
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.sleep(0)  # aiokafka's stop raises CancelledError when a task of its start has not run yet
        await self._consumer.stop()

    async def read(
        self,
        topic: str,
        partition: int,
        start: int = 0,
        *,
        stop: int | None = None,
        written_to: int | None = None,
        at_least: int = 0,
    ) -> AsyncGenerator[Any, None]:
        """The records from ``start`` (or the oldest kept) up to ``stop`` (excluded) or to the end reached.

        Instead of ``stop``, ``written_to`` says that all before it was written, so that it is waited for: a commit is
        answered before its end stands in the partition, and until then what was committed cannot be read.
        Raises LogEndsEarlierError when the partition ends before ``start``, ``at_least`` or ``written_to``.
        """
        stop = stop if written_to is None else written_to
        tp = TopicPartition(self._broker.topic(topic), partition)
        self._consumer.assign([tp])
        oldest = (await self._consumer.beginning_offsets([tp]))[tp]
        self._consumer.seek(tp, max(start, oldest))
        deadline = time.monotonic() + _READABLE_WITHIN_S
        while True:
            try:
                fetched = await self._consumer.getmany(tp, timeout_ms=_POLL_MS)
            except OffsetOutOfRangeError as error:
                raise _ends_earlier(topic, partition, max(start, at_least)) from error
            for record in fetched.get(tp, ()):
                if stop is not None and record.offset >= stop:
                    return
                yield record
            # The high watermark of a fetch is exact where list-offsets is not (the embedded broker's is too low).
            end = self._consumer.highwater(tp)
            if end is None:
                continue
            if end < max(start, at_least):
                raise _ends_earlier(topic, partition, max(start, at_least))
            # What is behind an open transaction is nobody's yet: to wait for it could take as long as its timeout.
            readable = self._consumer.last_stable_offset(tp) if self._broker.idempotent else end
            position = await self._consumer.position(tp)
            if position >= (readable if stop is None else min(stop, readable)):
                if written_to is None or position >= written_to:
                    return
                if time.monotonic() > deadline:
                    raise _ends_earlier(topic, partition, written_to)

    async def oldest(self, topic: str, partition: int) -> int:
        """The first offset that the broker still holds."""
        tp = TopicPartition(self._broker.topic(topic), partition)
        return int((await self._consumer.beginning_offsets([tp]))[tp])

    @property
    def tells_ends(self) -> bool:
        """Whether the broker says exactly where a log ends. The embedded one does not; its log dies with it anyway."""
        return self._broker.idempotent

    async def end(self, topic: str, partition: int) -> int:
        """The offset behind the last record that can be read, as far as the broker knows it without a fetch."""
        tp = TopicPartition(self._broker.topic(topic), partition)
        return int((await self._consumer.end_offsets([tp]))[tp])

    async def epoch_end(self, topic: str, partition: int, epoch: int) -> int | None:
        """Where a leader's epoch ends, see `stream.kafka.leader_epochs`; None where the broker does not say."""
        return await epoch_end(self._consumer, TopicPartition(self._broker.topic(topic), partition), epoch)

    async def offset_at(self, topic: str, partition: int, produced_ms: int) -> int | None:
        """The first offset of a record of this time or later; None when there is none."""
        tp = TopicPartition(self._broker.topic(topic), partition)
        found = (await self._consumer.offsets_for_times({tp: produced_ms}))[tp]
        return None if found is None else int(found.offset)

    async def tail_start(self, topic: str, partition: int, records: int) -> int:
        """An offset at most ``records`` before the end, as far as the broker knows it without a fetch."""
        tp = TopicPartition(self._broker.topic(topic), partition)
        self._consumer.assign([tp])
        end = (await self._consumer.end_offsets([tp]))[tp]
        return max(0, int(end) - records)


async def sound(
    log: LogReader, topic: str, decode: Callable[[bytes | None], _T], start: int = 0
) -> AsyncGenerator[_T, None]:
    """Read partition 0 from ``start`` to its end, decoded; what raises RecordError is put aside and counted."""
    async with aclosing(log.read(topic, 0, start)) as records:
        async for record in records:
            try:
                content = decode(record.value)
            except RecordError as error:
                log.rejects(topic, 0, record.offset, error)
                continue
            yield content


def _ends_earlier(topic: str, partition: int, start: int) -> LogEndsEarlierError:
    return LogEndsEarlierError(
        f"{topic}[{partition}] ends before offset {start}, up to which its records were read once: the topic was "
        "created again, or this is another broker. Start with the snapshots and the Redis of this broker, or with an "
        "empty Redis and a base for a new log (python -m learners base --new-log)."
    )
