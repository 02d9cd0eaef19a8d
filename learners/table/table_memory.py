"""The memory of an embedding table: what it may use, and what it uses."""

from __future__ import annotations

from learners.table.answers import TableMemory
from learners.table.arrays import NEW, USED, Store
from learners.table.memory import physical_bytes

_HEAD = 16  # bytes: key 8, last seen 4, column and flags 4
_ROW_NUMBERS = (1 << 31) - (1 << 17)  # rows are numbered by 32 bits


def most_rows(dim: int, columns: int, max_rows: int | None) -> int:
    """Rows of address space: what max_rows allows, or what would fill the machine."""
    bounded = physical_bytes() // (4 * (dim + 3) + _HEAD)
    if max_rows is not None:
        bounded = min(bounded, 2 * max_rows)  # a reader may assign before it removes
    return min(bounded, _ROW_NUMBERS) + 1 + columns


def memory_of(store: Store) -> TableMemory:
    """Memory in use."""
    used = int(store.counters[USED])
    return TableMemory(
        numbers=store.numbers.strides[0] * used,
        last_seen=4 * used,
        keys=(_HEAD - 4) * used,
        index=8 * int(store.counters[NEW]),
        fixed=store.sketch.nbytes + store.noted.nbytes + store.saved.nbytes,
    )
