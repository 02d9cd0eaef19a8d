"""Examples that wait for their learn batch, and the position of each in the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.records.examples import ExampleRows, concat
from stream.records.wire import OffsetRange


class Position(NamedTuple):
    """A position between two rows of one examples partition: ``row`` rows of the record at ``offset`` lie before it."""

    offset: int
    row: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one step, in order, and where they came from; the ranges also span rows that are not learned."""

    rows: ExampleRows
    ranges: list[OffsetRange]


@dataclass(slots=True)
class _Segment:
    """The rows of one record that are to be learned; ``number[i]`` is the index of row i in the record."""

    partition: int
    offset: int
    rows: ExampleRows
    number: NDArray[np.intp]


class PendingExamples:
    """A queue of example rows from several partitions, cut into batches of any length.

    A record's rows leave in order, records in the order in which they were added. ``position(p)`` is always the one
    before which every row of partition p was cut, from which a restart reads on.
    """

    def __init__(self) -> None:
        self._segments: deque[_Segment] = deque()
        self._cut: dict[int, Position] = {}  # where the cut rows end
        self._read: dict[int, Position] = {}  # where the added records end
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def positions(self) -> dict[int, Position]:
        """The position before which all rows were cut, for every partition heard of."""
        waiting = {segment.partition for segment in self._segments}
        return {p: self._cut[p] if p in waiting else read for p, read in self._read.items()}

    def next_position(self, partition: int) -> Position:
        """The position at which the next added record of a partition is expected; the start when none was added."""
        return self._read.get(partition, Position(0, 0))

    def waiting(self, heard_ms: Mapping[int, int]) -> list[tuple[ExampleRows, int]]:
        """The rows that wait, each record's with how far its partition was heard."""
        return [(segment.rows, heard_ms.get(segment.partition, 0)) for segment in self._segments]

    def move_to(self, partition: int, position: Position) -> None:
        """Start a partition at ``position``: earlier rows count as cut. Its rows that wait are dropped."""
        self._segments = deque(s for s in self._segments if s.partition != partition)
        self._rows = sum(len(s.number) for s in self._segments)
        self._cut[partition] = self._read[partition] = position

    def log_cut(self, partition: int, offset: int) -> None:
        """Expect the records from ``offset`` on; waiting rows from there are dropped: no journal could name them."""
        if offset >= self.next_position(partition).offset:
            return
        self._segments = deque(s for s in self._segments if s.partition != partition or s.offset < offset)
        self._rows = sum(len(s.number) for s in self._segments)
        self._read[partition] = Position(offset, 0)
        self._cut[partition] = min(self._cut.get(partition, self._read[partition]), self._read[partition])

    def add(self, rows: ExampleRows, keep: NDArray[np.bool_], partition: int, offset: int) -> None:
        """Append the kept rows of the record at ``offset``; those before the partition's position are left out."""
        expected = self.next_position(partition)
        if offset < expected.offset:
            return
        number = np.flatnonzero(keep)
        if offset == expected.offset:
            number = number[number >= expected.row]
        if partition not in self._cut:
            self._cut[partition] = Position(offset, 0)
        self._read[partition] = Position(offset + 1, 0)
        if len(number):
            self._segments.append(_Segment(partition, offset, rows.take(number), number))
            self._rows += len(number)

    def keep(self, kept: Callable[[ExampleRows], NDArray[np.bool_]]) -> int:
        """Drop the waiting rows for which ``kept`` says no, return how many; their records count as read."""
        segments: deque[_Segment] = deque()
        for segment in self._segments:
            index = np.flatnonzero(kept(segment.rows))
            if len(index):
                segment.rows, segment.number = segment.rows.take(index), segment.number[index]
                segments.append(segment)
        before, self._segments = self._rows, segments
        self._rows = sum(len(segment.number) for segment in segments)
        return before - self._rows

    def cut(self, count: int) -> Batch:
        """The first ``count`` rows (all when there are fewer); ValueError when none wait."""
        if not self._rows or count < 1:
            raise ValueError(f"cut({count}) of {self._rows} waiting rows: a batch needs at least 1. Ask len() first.")
        parts: list[ExampleRows] = []
        ranges: list[OffsetRange] = []
        missing = min(count, self._rows)
        while missing:
            segment = self._segments[0]
            taken = min(missing, len(segment.number))
            end = Position(segment.offset + 1, 0)
            if taken == len(segment.number):
                parts.append(segment.rows)
                self._segments.popleft()
            else:
                end = Position(segment.offset, int(segment.number[taken]))
                parts.append(segment.rows.take(np.arange(taken)))
                segment.rows = segment.rows.take(np.arange(taken, len(segment.number)))
                segment.number = segment.number[taken:]
            self._extend(ranges, segment.partition, end)
            missing -= taken
            self._rows -= taken
        return Batch(concat(parts), ranges)

    def _extend(self, ranges: list[OffsetRange], partition: int, end: Position) -> None:
        """Move the partition's cut to ``end`` and add that range to the ranges."""
        start, self._cut[partition] = self._cut[partition], end
        if ranges and ranges[-1].partition == partition:
            last = ranges.pop()
            start = Position(last.from_offset, last.from_row)
        ranges.append(
            OffsetRange(
                partition=partition,
                from_offset=start.offset,
                from_row=start.row,
                to_offset=end.offset,
                to_row=end.row,
            )
        )
