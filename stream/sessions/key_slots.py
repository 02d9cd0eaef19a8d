"""Numbers for 64-bit keys, so that what belongs to a key can lie in plain arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel

_FIRST_CAPACITY = 2048  # a power of two; at most half of it is taken
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: the upper half depends on every bit of the key
_32 = np.uint64(32)


class KeySlots:
    """Keys to the numbers 1, 2, 3 … in the order in which they came; 0 stands for every unknown key.

    Open addressing; 24 to 40 bytes a key.
    """

    def __init__(self) -> None:
        self._index = np.zeros(_FIRST_CAPACITY, np.int64)  # hash → slot, 0: free
        self._keys = np.zeros(_FIRST_CAPACITY, np.uint64)  # by slot
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def look_up(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The slots of keys, 0 for unknown ones, (N,)."""
        return _look_up(self._index, self._keys, np.array(keys))

    def admit(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The slots of keys, new ones for those that are unknown, (N,)."""
        if 2 * (self._count + len(keys)) >= len(self._index):
            self._grow(self._count + len(keys))
        slots, self._count = _admit(self._index, self._keys, self._count, np.array(keys))
        return slots

    def keys(self) -> NDArray[np.uint64]:
        """All keys in the order of their slots, which begin with 1."""
        return self._keys[1 : self._count + 1]

    def _grow(self, count: int) -> None:
        capacity = 1 << (4 * count).bit_length()
        before, self._keys = self.keys(), np.zeros(capacity // 2, np.uint64)
        self._index = np.zeros(capacity, np.int64)
        _admit(self._index, self._keys, 0, before.copy())


@kernel
def _find(index: NDArray[np.int64], keys: NDArray[np.uint64], key: np.uint64) -> tuple[np.int64, np.int64]:
    """The slot of a key, or 0, and the entry where it is or belongs."""
    mask = len(index) - 1
    entry = np.int64((key * _SPREAD) >> _32) & mask
    while index[entry] != 0 and keys[index[entry]] != key:
        entry = (entry + 1) & mask
    return index[entry], entry


@kernel
def _look_up(index: NDArray[np.int64], keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    slots = np.empty(len(wanted), np.int64)
    for at in range(len(wanted)):
        slots[at], _ = _find(index, keys, wanted[at])
    return slots


@kernel
def _admit(
    index: NDArray[np.int64], keys: NDArray[np.uint64], count: int, wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], int]:
    """The slots of ``wanted``, and how many there are then; there must be room for all of them."""
    slots = np.empty(len(wanted), np.int64)
    for at in range(len(wanted)):
        slots[at], entry = _find(index, keys, wanted[at])
        if slots[at] == 0:
            count += 1
            slots[at] = index[entry] = count
            keys[count] = wanted[at]
    return slots, count
