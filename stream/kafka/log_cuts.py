"""Whether a log is still the one that was read: a place in it means nothing once other records have its offsets.

A broker that died before its disk held what it had acknowledged, a replica that took over without all of it, a topic
that was created again: the log ends earlier, and new records get offsets that were read before. By its end alone that
shows only until the log has grown again, by the epoch of the leader that took the record read last always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import structlog
from prometheus_client import Counter

from stream.kafka.broker import Broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.leader_epochs import UNKNOWN
from stream.kafka.log_reader import LogEndsEarlierError, LogReader

_CLOCK_DISORDER_MS = 600_000  # between the records of one log, where only their times tell which ones are new

_log = structlog.get_logger(__name__)


class ReadUpTo(NamedTuple):
    """How far a partition was read: the offset behind the record read last, its leader epoch, its time."""

    next_offset: int
    leader_epoch: int = -1  # the broker did not say
    produced_ms: int = 0

    @classmethod
    def after(cls, record: InputRecord) -> Self:
        """Up to this record."""
        return cls(record.offset + 1, record.leader_epoch, record.produced_ms)


class LogCut(NamedTuple):
    """A log that goes on with other records than those that were read: from ``offset`` on they are new."""

    topic: str
    partition: int
    offset: int
    read: ReadUpTo

    @property
    def topic_partition(self) -> TopicPartition:
        """Of the log."""
        return self.topic, self.partition

    @property
    def gone(self) -> int:
        """How many offsets were read that are other records' now, or nobody's yet."""
        return max(0, self.read.next_offset - self.offset)


async def find_cut(log: LogReader, topic: str, partition: int, read: ReadUpTo) -> LogCut | None:
    """Compare a log with what was read of it; None while it holds all of that, or nobody can tell."""
    goes_on = await _goes_on(log, topic, partition, read) if log.tells_ends else None
    return None if goes_on is None else LogCut(topic, partition, goes_on, read)


async def _goes_on(log: LogReader, topic: str, partition: int, read: ReadUpTo) -> int | None:
    end = await log.epoch_end(topic, partition, read.leader_epoch) if read.leader_epoch >= 0 else None
    if end is None:  # by its end alone
        is_cut = await log.end(topic, partition) < read.next_offset
        return await _by_time(log, topic, partition, read) if is_cut else None
    if end == UNKNOWN or not await _is_of_before(log, topic, partition, min(end, read.next_offset) - 1, read):
        return await _by_time(log, topic, partition, read)
    return end if end < read.next_offset else None


async def _is_of_before(log: LogReader, topic: str, partition: int, offset: int, read: ReadUpTo) -> bool:
    """Whether the record at ``offset`` can be one that came before the record read last, or that one.

    A topic that was created again counts its epochs from 0 as the one before did. Records without a time, and those
    that retention has deleted, say nothing against it.
    """
    if not read.produced_ms or offset < await log.oldest(topic, partition):
        return True
    is_last = offset == read.next_offset - 1
    try:
        async for record in log.read(topic, partition, offset, stop=offset + 1):
            return bool(record.timestamp == read.produced_ms if is_last else record.timestamp <= read.produced_ms)
    except LogEndsEarlierError:  # cut again meanwhile
        return False
    return True  # no record: the end of a transaction


async def _by_time(log: LogReader, topic: str, partition: int, read: ReadUpTo) -> int:
    """The first record that may be new: what is read twice changes nothing, what is passed over is lost."""
    oldest = await log.oldest(topic, partition)
    if not read.produced_ms:
        return oldest
    at = await log.offset_at(topic, partition, read.produced_ms - _CLOCK_DISORDER_MS)
    return await log.end(topic, partition) if at is None else max(oldest, at)


def report_cut(cut: LogCut, counted: Counter) -> None:
    """Count and say it."""
    counted.inc(cut.gone)
    _log.warning(
        "the log is not the one that was read: it was cut, or its topic created again; what is new in it is taken",
        topic=cut.topic,
        partition=cut.partition,
        read_up_to=cut.read.next_offset,
        goes_on_at=cut.offset,
        remedy="look at the broker: a cluster loses no acknowledged record with MILLSTREAM_REPLICATION_FACTOR=3, "
        "min.insync.replicas=2 and unclean.leader.election.enable=false",
    )


class LogWatch:
    """Compares what arrives with what was read before, by partition; asks the broker only where they do not fit."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._read: dict[TopicPartition, ReadUpTo] = {}

    def forget(self) -> None:
        """The partitions are assigned again; who restores them looks at their logs."""
        self._read.clear()

    async def cut_before(self, records: Sequence[InputRecord]) -> LogCut | None:
        """Whether the log was cut before these records of one partition, in their order; no, nearly always."""
        first, tp = records[0], records[0].topic_partition
        read, cut = self._read.get(tp), None
        if read and (first.offset < read.next_offset or first.leader_epoch != read.leader_epoch):
            async with LogReader(self._broker) as log:
                cut = await find_cut(log, *tp, read)
        last = ReadUpTo.after(records[-1])
        self._read[tp] = last if read is None or cut is not None else max(read, last)
        return cut
