"""Displays that an earlier life had put into the examples topic, of rows that it had not settled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.examples import Displays


class ToldDisplays:
    """Their impression ids, and the offsets of the records that told them. Those rows' events will be read again."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.uint64)
        self._offsets = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The impression ids."""
        return self._keys

    def add(self, displays: Displays, offset: int) -> None:
        """Take in the displays of the record at ``offset``."""
        self._keys = np.concatenate((self._keys, displays.impression_id))
        self._offsets = np.concatenate((self._offsets, np.full(len(displays.impression_id), offset)))

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Forget all others."""
        self._keys, self._offsets = self._keys[which], self._offsets[which]

    def take(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Forget those among ``keys``: where they stand in it, and the offsets of the records that told them."""
        _, where, mine = np.intersect1d(keys, self._keys, return_indices=True)
        offsets = self._offsets[mine]
        self._keys, self._offsets = np.delete(self._keys, mine), np.delete(self._offsets, mine)
        return where, offsets

    def first_offset(self, otherwise: int) -> int:
        """The offset of the oldest record that told one of them, at most ``otherwise``."""
        return int(self._offsets.min(initial=otherwise))
