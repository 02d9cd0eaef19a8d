"""Which records of a topic are finished, so that its offset can be committed up to the first that is not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.join.state.kernels import Open

_FIRST_RECORDS = 256
_RECORD_NUMBERS = 1 << 32  # they wrap round


class CommitTracker:
    """Counts the unfinished rows of every record of one topic partition; committed is the first record with any.

    The record that last moved the topic's watermark counts as unfinished too: a rebuild reads it again and so knows
    how far the topic had come even when nothing new ever follows.
    """

    def __init__(self) -> None:
        self._base = 0  # number of the oldest record kept
        self._count = 0  # records kept
        self._finished_before = 0  # how many are before the first unfinished one, as last looked for
        self._open = np.zeros(_FIRST_RECORDS, np.int32)
        self._offsets = np.zeros(_FIRST_RECORDS, np.int64)
        self._pinned: int | None = None
        self.next_offset: int | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def open(self) -> Open:
        """The counts, for the kernels that finish rows; the first record's number is the base."""
        return Open(self._open, self._base)

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self._open.nbytes + self._offsets.nbytes

    def start_at(self, offset: int) -> None:
        """Records before ``offset`` are finished: they are redelivered, if they come."""
        self.next_offset = offset

    def seen(self, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these records, in their order, were seen before, (M,)."""
        return offsets < (-1 if self.next_offset is None else self.next_offset)

    def start(self, offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Note fresh records of so many rows each; return the number of each row's record, (rows.sum(),) u32."""
        count = len(offsets)
        self._make_room(count)
        new = slice(self._count, self._count + count)
        self._open[new], self._offsets[new] = rows, offsets
        first = self._base + self._count
        self._count += count
        self.next_offset = int(offsets[-1]) + 1
        numbers = (first + np.arange(count)) % _RECORD_NUMBERS
        return np.repeat(numbers.astype(np.uint32), rows)

    def log_cut(self, offset: int) -> None:
        """Records from ``offset`` on are others than those noted, which finish as ever but do not commit the others."""
        if self.next_offset is not None:
            self.next_offset = min(self.next_offset, offset)
        if self._pinned is not None:
            self._pinned = min(self._pinned, offset)
        np.minimum(self._offsets[: self._count], offset, out=self._offsets[: self._count])

    def finish(self, records: NDArray[np.uint32]) -> None:
        """Note that rows are finished, by the numbers of their records."""
        np.subtract.at(self._open, self._at(records), 1)

    def offsets_of(self, records: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The offsets of records that had unfinished rows at the last `to_commit`, or came since."""
        return self._offsets[self._at(records)]

    def pin(self, offset: int) -> None:
        """Note that the record at ``offset`` moved the topic's watermark."""
        self._pinned = offset

    def to_commit(self) -> int | None:
        """The first offset to read again, None before any record. Finished records before it are dropped."""
        if self.next_offset is None:
            return None
        first = self._first_open()
        offset = self.next_offset if first == self._count else int(self._offsets[first])
        self._drop(first)
        return offset if self._pinned is None else min(offset, self._pinned)

    def _at(self, records: NDArray[np.uint32]) -> NDArray[np.int64]:
        return (records - np.uint32(self._base)).astype(np.int64)

    def _first_open(self) -> int:
        """The index of the first record with unfinished rows; the number of records kept when there is none."""
        at = self._finished_before
        while at < self._count:
            found = np.flatnonzero(self._open[at : min(at + _FIRST_RECORDS, self._count)])
            if len(found):
                return at + int(found[0])
            at = min(at + _FIRST_RECORDS, self._count)
        return at

    def _drop(self, count: int) -> None:
        """Forget the first records, which are finished; move the rest to the front once that is the smaller part."""
        self._finished_before = count
        if count and 2 * count >= self._count:
            kept = self._count - count
            for array in (self._open, self._offsets):
                array[:kept] = array[count : self._count].copy()
            self._base = (self._base + count) % _RECORD_NUMBERS
            self._count, self._finished_before = kept, 0

    def _make_room(self, count: int) -> None:
        while self._count + count > len(self._open):
            self._open = np.concatenate((self._open, np.zeros_like(self._open)))
            self._offsets = np.concatenate((self._offsets, np.zeros_like(self._offsets)))
