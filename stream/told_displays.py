"""Displays that an earlier life had put into the examples topic, of rows that it had not settled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stream.examples import Displays

_FIRST_SIEVE = 65_536  # rows; after that, whenever there are twice as many as were left


class ToldDisplays:
    """Their impression ids, and the offsets of the records that told them. Those rows' events will be read again.

    Adding costs the rows that are added; taking, a binary search for each.

    Parameters
    ----------
    is_settled : which of some impressions were settled: their events change nothing, they are forgotten.
    """

    def __init__(self, is_settled: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]) -> None:
        self._is_settled = is_settled
        self._keys = np.zeros(0, np.uint64)  # in their order, apart from the parts
        self._records = np.zeros(0, np.int64)  # the place in the records below of who told each
        self._taken = np.zeros(0, np.bool_)
        self._parts: list[NDArray[np.uint64]] = []  # what the newest records told, not sifted yet
        self._part_rows = 0
        self._offsets = np.zeros(0, np.int64)  # of the records, those of the parts excluded
        self._open = np.zeros(0, np.int64)  # how many of a record's rows are left
        self._first = 0  # no record before this one has any
        self._part_offsets: list[int] = []
        self._left = 0

    def __len__(self) -> int:
        """How many are left; some of them may turn out to be settled."""
        return self._left + self._part_rows

    def add(self, displays: Displays, offset: int) -> None:
        """Take in the displays of the record at ``offset``."""
        self._parts.append(displays.impression_id.copy())  # not a view that would hold the record
        self._part_offsets.append(offset)
        self._part_rows += len(displays.impression_id)
        if self._part_rows > max(_FIRST_SIEVE, len(self._keys)):
            self.sieve()

    def take(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Forget those among ``keys``, which are distinct: where they stand in it, and who told them."""
        self.sieve()
        if not len(self._keys):
            return np.zeros(0, np.intp), np.zeros(0, np.int64)
        order = np.argsort(keys)  # in order, a search begins where the last one ended
        at = np.zeros(len(keys), np.int64)
        at[order] = np.minimum(np.searchsorted(self._keys, keys[order]), len(self._keys) - 1)
        where = np.flatnonzero((self._keys[at] == keys) & ~self._taken[at])
        at = at[where]
        self._taken[at] = True
        records = self._records[at]
        np.subtract.at(self._open, records, 1)
        self._left -= len(at)
        if not self._left:
            self._keys, self._records = np.zeros(0, np.uint64), np.zeros(0, np.int64)
            self._taken = np.zeros(0, np.bool_)
        return where, self._offsets[records]

    def first_offset(self, otherwise: int) -> int:
        """The offset of the oldest record that told one of them, at most ``otherwise``."""
        self.sieve()
        while self._first < len(self._open) and not self._open[self._first]:
            self._first += 1
        return min(otherwise, int(self._offsets[self._first])) if self._first < len(self._open) else otherwise

    def sieve(self) -> None:
        """Forget what was settled; to be called before settled rows are forgotten."""
        if not self._parts:
            return
        numbers = np.arange(len(self._parts)) + len(self._offsets)
        keys = np.concatenate((self._keys[~self._taken], *self._parts))
        records = np.concatenate((self._records[~self._taken], np.repeat(numbers, [len(one) for one in self._parts])))
        left = np.flatnonzero(~self._is_settled(keys))
        left = left[np.argsort(keys[left], kind="stable")]
        self._keys, self._records = keys[left], records[left]
        self._taken = np.zeros(len(left), np.bool_)
        self._offsets = np.concatenate((self._offsets, np.array(self._part_offsets, np.int64)))
        self._open = np.bincount(self._records, minlength=len(self._offsets))
        self._left = len(left)
        self._parts, self._part_offsets, self._part_rows = [], [], 0
