"""Which rows were dropped as undisplayed not long ago: an event that misses its row is told what became of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PART_ROWS = 16_384


@dataclass(slots=True)
class _Part:
    keys: NDArray[np.uint64]  # sorted by the first look
    dropped_ms: int  # the watermark at which the last of them was dropped
    is_sorted: bool = False


class DroppedRows:
    """Impression ids, in parts in the order in which they were dropped. 8 bytes each, and to add costs no more.

    Parameters
    ----------
    kept_ms : event time for which they are kept at least.
    """

    def __init__(self, kept_ms: int) -> None:
        self._kept_ms = kept_ms
        self._parts: deque[_Part] = deque()
        self._new: list[NDArray[np.uint64]] = []
        self._new_rows = 0
        self._newest_ms = 0

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(part.keys.nbytes for part in self._parts) + 8 * self._new_rows

    def add(self, keys: NDArray[np.uint64], watermark_ms: int) -> None:
        """Note rows that are dropped at this watermark, (B,)."""
        if not len(keys):
            return
        self._new.append(keys)
        self._new_rows += len(keys)
        self._newest_ms = watermark_ms
        if self._new_rows >= _PART_ROWS:
            self._merge_new()

    def known(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these rows were dropped, (B,)."""
        found = np.zeros(len(keys), np.bool_)
        self._merge_new()
        for part in self._parts:
            if not part.is_sorted:
                part.keys.sort(kind="stable")  # mostly two sorted runs
                part.is_sorted = True
            at = np.searchsorted(part.keys, keys)
            found |= part.keys[np.minimum(at, len(part.keys) - 1)] == keys
        return found

    def expire(self, watermark_ms: int) -> None:
        """Forget the rows that were dropped too long ago."""
        while self._parts and self._parts[0].dropped_ms < watermark_ms - self._kept_ms:
            self._parts.popleft()

    def _merge_new(self) -> None:
        """Make the new ones a part, or put them to the last one while that is small."""
        if not self._new_rows:
            return
        small = [self._parts.pop().keys] if self._parts and len(self._parts[-1].keys) < _PART_ROWS else []
        self._parts.append(_Part(np.concatenate([*small, *self._new]), self._newest_ms))
        self._new, self._new_rows = [], 0
