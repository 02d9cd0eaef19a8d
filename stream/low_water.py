"""Which records of a topic are finished, so that its offset can be committed up to the first that is not."""

from __future__ import annotations

from collections import deque


class LowWater:
    """Counts the unfinished rows of every record of one topic partition; the low water is the first with any.

    The record that last moved the topic's watermark counts as unfinished too: a rebuild reads it again and so knows
    how far the topic had come even when nothing new ever follows.
    """

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._order: deque[int] = deque()
        self._anchor: int | None = None
        self._next: int | None = None

    def start(self, offset: int, rows: int) -> bool:
        """Note a record of `rows` rows; return False when its offset was seen before (a redelivery)."""
        if self._next is not None and offset < self._next:
            return False
        self._next = offset + 1
        if rows:
            self._open[offset] = rows
            self._order.append(offset)
        return True

    def finish(self, offset: int) -> None:
        """Note that one more row of the record at `offset` is finished."""
        left = self._open[offset] - 1
        if left:
            self._open[offset] = left
        else:
            del self._open[offset]

    def anchor(self, offset: int) -> None:
        """Note that the record at `offset` moved the topic's watermark."""
        self._anchor = offset

    def offset(self) -> int | None:
        """Return the offset to commit (the first to read again), None before any record."""
        while self._order and self._order[0] not in self._open:
            self._order.popleft()
        bounds = [self._next] + [self._anchor] + ([self._order[0]] if self._order else [])
        return min((bound for bound in bounds if bound is not None), default=None)
