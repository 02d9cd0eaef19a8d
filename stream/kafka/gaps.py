"""Offsets that a reader was not given: records to be fetched, records that are lost, or nothing at all.

Offsets have gaps where nothing is missing, too: the end of a transaction takes one, and so does each record of a
transaction that was rolled back. Records are missing in two cases only. Before the first one of an assignment, since
the group's commit can be ahead of what its reader holds: a folder that is new, a snapshot that is older. And where
retention deleted them before they were read, which the partition's oldest offset shows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any, NamedTuple

import structlog
from prometheus_client import Counter

from stream.kafka.broker import Broker
from stream.kafka.log_reader import LogReader

CHECK_INTERVAL_S = 1.0  # after transactions every record comes after a gap, and asking the broker takes 20 ms

_log = structlog.get_logger(__name__)


class _OffsetGap(NamedTuple):
    partition: int
    start: int
    stop: int


def report_loss(
    lost: Counter,
    what: str,
    topic: str,
    partition: int,
    offsets: tuple[int, int],
    remedy: str = "keep the topic for longer (retention.ms) than the workers may be down",
) -> None:
    """Count and say that retention took the records of ``offsets`` before they were ``what``, "archived"."""
    lost.inc(offsets[1] - offsets[0])
    _log.warning(
        f"the log lost records before they were {what}",
        topic=topic,
        partition=partition,
        offsets=offsets,
        remedy=remedy,
    )


class LogGaps:
    """Watches over the offsets of a topic's partitions that one reader is given.

    Parameters
    ----------
    lost : counts the offsets that retention took, those without a record among them.
    what : the reader does with records, as a warning says it: "archived".
    """

    def __init__(self, broker: Broker, topic: str, lost: Counter, what: str) -> None:
        self._broker = broker
        self._topic = topic
        self._lost = lost
        self._what = what
        self._unread: set[int] = set()  # partitions of which nothing came since they were assigned
        self._gaps: list[_OffsetGap] = []  # not yet compared with the oldest offset
        self._reported: dict[int, int] = {}  # up to where losses of a partition were reported
        self._checked_s = -CHECK_INTERVAL_S

    def assigned(self, partitions: Iterable[int]) -> None:
        """The next record of these partitions is the first of their assignment."""
        self._unread.update(partitions)

    @property
    def unchecked(self) -> int:
        """Gaps that were not compared with the oldest offset yet."""
        return len(self._gaps)

    def begins(self, partition: int, next_offset: int, oldest: int) -> None:
        """The reader reads the log itself, from ``next_offset`` on, of which ``oldest`` is the oldest offset."""
        self._report([_OffsetGap(partition, next_offset, oldest)], oldest)

    async def before(self, partition: int, next_offset: int, offset: int) -> AsyncGenerator[Any, None]:
        """The records from ``next_offset``, which the reader holds up to, that it must take before ``offset``."""
        first = partition in self._unread
        self._unread.discard(partition)
        if offset <= next_offset:
            return
        gap = _OffsetGap(partition, next_offset, offset)
        if not first:
            self._gaps.append(gap)
            return
        async with LogReader(self._broker) as log:
            self._report([gap], await log.oldest(self._topic, partition))
            async for record in log.read(self._topic, partition, next_offset, stop=offset):
                yield record

    async def check(self, now_s: float) -> None:
        """Report gaps of records that retention deleted; call it after each step, with a clock that only rises."""
        if not self._gaps or now_s - self._checked_s < CHECK_INTERVAL_S:
            return
        self._checked_s = now_s
        gaps, self._gaps = self._gaps, []
        async with LogReader(self._broker) as log:
            for partition in sorted({gap.partition for gap in gaps}):
                oldest = await log.oldest(self._topic, partition)
                self._report([gap for gap in gaps if gap.partition == partition], oldest)

    def _report(self, gaps: Iterable[_OffsetGap], oldest: int) -> None:
        for partition, first, stop in gaps:
            start, end = max(first, self._reported.get(partition, 0)), min(oldest, stop)
            if end > start:
                self._reported[partition] = end
                report_loss(self._lost, self._what, self._topic, partition, (start, end))
