"""The arrays of an embedding table, and the layout of what is in them."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from learners.table import sketch
from learners.table.config import TableConfig
from learners.table.memory import reserved

LIVE, CHANGED, IN_BATCH = np.uint64(1), np.uint64(2), np.uint64(4)
"""Flags of a row."""
ALWAYS = np.uint64(0xFFFFFFFF)
"""The last seen epoch of a default row."""
NO_COLUMN = 0xFFFF
"""The column of a row that was assigned, not admitted."""
USED, FREE, HELD, OLD, NEW, FRONTIER, NOTED, TURN, SIGHTED, SIGHTED_BEFORE = range(10)
"""Indices into ``Store.counters``: rows ever used · first free row · live keys · old and new capacity of the index, and
the frontier between them · rows noted as changed · the sketch's younger generation, its sightings, the older one's."""
_MAX_NOTED_ROWS = 1 << 20  # with more changes, take_changed looks at every row
_COUNTERS = 10


class Store(NamedTuple):
    """The arrays of a table.

    slots : (.,) u64 · heads : (rows, 2) u64 · numbers : (rows, dim + 3) f32, vector, weight and two accumulators ·
    counters : (10,) i64 · noted : (.,) i32 rows that changed · saved : (rows,) u8, rows that a running snapshot
    has (1) or must never have (2) · sketch : (2, cells) u8, two generations · admitted : (columns,) i64.
    """

    slots: NDArray[np.uint64]
    heads: NDArray[np.uint64]
    numbers: NDArray[np.float32]
    counters: NDArray[np.int64]
    noted: NDArray[np.int32]
    saved: NDArray[np.uint8]
    sketch: NDArray[np.uint8]
    admitted: NDArray[np.int64]

    @classmethod
    def empty(cls, capacity: int, dim: int, default_keys: NDArray[np.uint64], config: TableConfig) -> Self:
        """Arrays for ``capacity`` rows that hold only the default rows, 1 and on; the index is not built."""
        columns = len(default_keys)
        store = cls(
            slots=reserved((2 * capacity + (1 << 16),), np.uint64),
            heads=reserved((capacity, 2), np.uint64),
            numbers=reserved((capacity, dim + 3), np.float32),
            counters=np.zeros(_COUNTERS, np.int64),
            noted=np.empty(_MAX_NOTED_ROWS, np.int32),
            saved=np.empty(0, np.uint8),
            sketch=sketch.cells(config.sketch_bytes, config.admit_after),
            admitted=np.zeros(columns, np.int64),
        )
        store.counters[USED], store.counters[HELD] = 1 + columns, columns
        store.heads[1 : 1 + columns, 0] = default_keys
        store.heads[1 : 1 + columns, 1] = heads_of(np.full(columns, ALWAYS), np.arange(columns))
        return store


class Rules(NamedTuple):
    """What decides admission and start values; numbers only."""

    admit_after: int
    max_rows: int
    rotate_after: int
    columns: int
    seed: int
    scale: float
    from_default: bool


def heads_of(seen: NDArray[np.unsignedinteger], column: NDArray[np.integer]) -> NDArray[np.uint64]:
    """The second word of the heads of live rows (n,), unchanged."""
    times, columns = seen.astype(np.uint64) << np.uint64(32), column.astype(np.uint64) << np.uint64(16)
    return times | columns | LIVE


def live(flags: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which heads are of rows in use."""
    return (flags & LIVE).astype(np.bool_)


def seen_of(flags: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The last seen epochs of heads."""
    return (flags >> np.uint64(32)).astype(np.uint32)


def column_of(flags: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """The columns of heads."""
    return (flags >> np.uint64(16)).astype(np.uint16)
