"""The memory of an embedding table: what it may use, what it uses, and what it will need next."""

from __future__ import annotations

from learners.memory import physical_bytes
from learners.pages import Ahead
from learners.table_answers import TableMemory
from learners.table_store import HELD, NEW, USED, Store

_HEAD = 16  # bytes: key 8, last seen 4, column and flags 4
_GROWS_SOON = 0.78  # load of the index, which grows at 0.80
_ROW_NUMBERS = (1 << 31) - (1 << 17)  # rows are numbered by 32 bits


def most_rows(dim: int, columns: int, max_rows: int | None) -> int:
    """Rows of address space: what max_rows allows, or what would fill the machine."""
    bounded = physical_bytes() // (4 * (dim + 3) + _HEAD)
    if max_rows is not None:
        bounded = min(bounded, 2 * max_rows)  # a reader may assign before it removes
    return min(bounded, _ROW_NUMBERS) + 1 + columns


class Growth:
    """Provides the memory into which rows and index grow, before they do."""

    def __init__(self, store: Store) -> None:
        self._heads, self._numbers, self._index = Ahead(store.heads), Ahead(store.numbers), Ahead(store.slots)

    def reach(self, store: Store) -> None:
        """Keys were admitted."""
        used, held, slots = (int(store.counters[place]) for place in (USED, HELD, NEW))
        numbers = store.numbers.strides[0] * used
        self._heads.reach(_HEAD * used, _HEAD * used // 32)
        self._numbers.reach(numbers, numbers // 16)
        if held > _GROWS_SOON * slots:
            self._index.reach(8 * slots, slots + 4096)  # it grows by an eighth

    def memory(self, store: Store, snapshot: int) -> TableMemory:
        """Memory in use, with ``snapshot`` bytes kept for the next one."""
        used = int(store.counters[USED])
        numbers, heads = store.numbers.strides[0] * used, _HEAD * used
        provided = (self._numbers.provided, numbers), (self._heads.provided, heads)
        return TableMemory(
            numbers=numbers,
            last_seen=4 * used,
            keys=(_HEAD - 4) * used,
            index=max(8 * int(store.counters[NEW]), self._index.provided),
            ahead=sum(max(0, there - needed) for there, needed in provided),
            fixed=store.sketch.nbytes + store.noted.nbytes + store.saved.nbytes,
            snapshot=snapshot,
        )
