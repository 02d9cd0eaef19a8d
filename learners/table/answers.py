"""What an embedding table answers."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from learners.table.arrays import NEW, USED, Store


class Lookup(NamedTuple):
    """The rows of a batch.

    unique : (U,) int32, each row met once, in the order of its first occurrence; without row 0.
    inverse : (B, E) int32, the index of each key's row in ``unique``; −1 for the missing key 0.
    """

    unique: NDArray[np.int32]
    inverse: NDArray[np.int32]


class Changed(NamedTuple):
    """What happened since the last ``take_changed``.

    keys : (n,) u64 ascending · values : (n, dim + 1) float32 · removed : (m,) u64 ascending, keys without a row now.
    """

    keys: NDArray[np.uint64]
    values: NDArray[np.float32]
    removed: NDArray[np.uint64]


class ColumnStatistics(NamedTuple):
    """Vocabulary of one embedded column: rows now, and rows ever admitted, expired and evicted."""

    column: int
    rows: int
    admitted_total: int
    expired_total: int
    evicted_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMemory:
    """Bytes in use, of rows that ever were used: the arrays reserve address space, which is not memory.

    numbers : vectors, weights and accumulators · last_seen · keys : with columns and flags · index · fixed : sketch and
    lists. A snapshot takes as much again as numbers and keys, twice, until it is written.
    """

    numbers: int
    last_seen: int
    keys: int
    index: int
    fixed: int

    @classmethod
    def of(cls, store: Store) -> Self:
        """Memory that a table's arrays use."""
        used = int(store.counters[USED])
        return cls(
            numbers=store.numbers.strides[0] * used,
            last_seen=4 * used,
            keys=12 * used,
            index=8 * int(store.counters[NEW]),
            fixed=store.sketch.nbytes + store.noted.nbytes + store.saved.nbytes,
        )

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))
