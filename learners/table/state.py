"""The state of an embedding table: a snapshot that is copied while the table learns on, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.table import row_kernels
from learners.table.arrays import HELD, SIGHTED, SIGHTED_BEFORE, TURN, USED, Store, heads_of
from learners.table.memory import reserved

TableArrays = dict[str, NDArray[Any]]


class TableCopy:
    """The table as it was at ``EmbeddingTable.begin_snapshot``: a copy on write, in software.

    Call ``step`` between learning steps until it says that it is done; rows that learning is about to change in the
    meantime are copied first. ``state`` may then run in another thread, while learning goes on.

    Parameters
    ----------
    store
        The arrays of the table; of these, ``saved`` is the copy's own.
    horizon
        Rows last seen before this epoch have expired, though they may still be there.
    removed
        Keys removed since the last ``take_changed``, in any order and number.
    rest
        What else is not in rows.
    """

    def __init__(self, store: Store, horizon: int, removed: list[NDArray[np.uint64]], rest: TableArrays) -> None:
        self._store, self._horizon, self._removed, self._rest = store, horizon, removed, rest
        self._rows = len(store.saved)
        self._done = 0
        self._heads = reserved((self._rows, 2), np.uint64)  # these two as they lie in the table
        self._numbers = reserved((self._rows, store.numbers.shape[1]), np.float32)

    @property
    def done(self) -> bool:
        """Whether every row has been copied."""
        return self._done >= self._rows

    def step(self, max_bytes: int = 1 << 21) -> bool:
        """Copy about ``max_bytes`` more (2 MiB take 10 ms, most of them for fresh memory); whether that was the end."""
        width = self._numbers.itemsize * self._numbers.shape[1] + 16
        last = min(self._rows, self._done + max(1, max_bytes // width))
        row_kernels.copy_rows(self._store, self._done, last, self._heads, self._numbers)
        self._done = last
        return self.done

    def save(self, rows: NDArray[np.int32]) -> None:
        """Copy rows (n,) that are about to change."""
        row_kernels.save_rows(self._store, rows, self._done, self._heads, self._numbers)

    def state(self) -> TableArrays:
        """What ``EmbeddingTable.state`` would have returned at the beginning.

        Raises
        ------
        RuntimeError
            ``step`` has not said yet that it is done.
        """
        if not self.done:
            raise RuntimeError(
                f"{self._done} of {self._rows} rows are copied, all must be: the state would hold rows of two times. "
                "Call step() until it returns True."
            )
        keys, sorted_keys, rows, values, accumulators, seen, column = _export(*self._numbers.shape)
        live, expired = row_kernels.live_rows(self._heads, self._horizon, keys, rows)
        gone = np.concatenate((*self._removed, keys[len(keys) - expired :]))
        order = np.argsort(keys[:live])
        keys, pending = sorted_keys[:live], keys
        np.take(pending, order, out=keys, mode="clip")  # another mode would buffer
        values, accumulators, seen, column = values[:live], accumulators[:live], seen[:live], column[:live]
        rows = rows[:live][order]
        changes = row_kernels.export(self._heads, self._numbers, rows, values, accumulators, seen, column, pending)
        removed = np.unique(gone)
        return {
            **self._rest,
            "keys": keys,
            "values": values,
            "accumulators": accumulators,
            "seen": seen,
            "column": column,
            "pending": pending[:changes],
            "removed": removed[keys[np.searchsorted(keys, removed) % live] != removed],  # default rows stay: live > 0
        }


def _export(rows: int, width: int) -> tuple[NDArray[Any], ...]:
    """Keys twice and rows, then values, accumulators, last seen epochs and columns.

    In large pages: with small ones their first use stops the learning beside it for up to 0.2 s at two million rows,
    with these for 30 ms (0.3 s at worst, on a machine of which others take half). To keep the memory for the next
    snapshot would bring that to 5 ms, for 290 bytes a row.
    """
    shapes = ((rows,), np.uint64), ((rows,), np.uint64), ((rows,), np.int32), ((rows, width - 2), np.float32)
    others = ((rows, 2), np.float32), ((rows,), np.uint32), ((rows,), np.uint16)
    return tuple(reserved(shape, dtype) for shape, dtype in (*shapes, *others))


def fill(store: Store, state: Mapping[str, NDArray[Any]], default_keys: NDArray[np.uint64]) -> None:
    """Write a checked state into empty arrays; the index is not built."""
    keys, columns = state["keys"], len(default_keys)
    rows = np.zeros(len(keys), np.int32)
    rows[np.searchsorted(keys, default_keys)] = np.arange(1, 1 + columns)
    rows[rows == 0] = np.arange(1 + columns, 1 + len(keys))
    store.heads[rows, 0] = keys
    store.heads[rows, 1] = heads_of(state["seen"], state["column"])
    dim = store.numbers.shape[1] - 3
    store.numbers[rows, : dim + 1] = state["values"]
    store.numbers[rows, dim + 1 :] = state["accumulators"]
    store.counters[USED], store.counters[HELD] = 1 + len(keys), len(keys)
    store.counters[[TURN, SIGHTED, SIGHTED_BEFORE]] = state["sightings"]
    store.sketch[...], store.admitted[...] = state["sketch"], state["admitted"]
