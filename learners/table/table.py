"""The embedding table: 64-bit key → row, without collisions; keys come, go and come back.

The rows are the truth, the index is derived. Nothing that a caller can keep depends on where a row lies: state, values
and statistics of two tables with the same history are equal, however they grew or were restored. Row numbers are valid
until the next ``admit``, ``advance``, ``assign``, ``remove`` or ``take_changed``, and mean nothing outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from learners.table import kernels as kernels
from learners.table import row_kernels, sketch
from learners.table.answers import Changed, ColumnStatistics, Lookup, TableMemory
from learners.table.arrays import (
    HELD,
    NOTED,
    SIGHTED,
    SIGHTED_BEFORE,
    USED,
    Rules,
    column_of,
    live,
)
from learners.table.checks import check_assigned, check_columns, check_gradients, check_keys, check_room
from learners.table.config import TableConfig
from learners.table.expiry import Removed
from learners.table.memory import aligned
from learners.table.rows import TableRows
from learners.table.state import TableArrays, TableCopy, fill
from learners.table.state_checks import check_state

__all__ = [
    "Changed",
    "ColumnStatistics",
    "EmbeddingTable",
    "Lookup",
    "TableArrays",
    "TableConfig",
    "TableCopy",
    "TableMemory",
]


class EmbeddingTable:
    """One learned row, a ``dim``-vector and a first-order weight, for each admitted key.

    A key is admitted at its ``admit_after``-th sighting (``learners.table.sketch`` counts the ones before). Until
    then, and for keys that ``find`` does not know, the **default row** of its column stands: it starts at zero, learns
    as any other, and never goes. Key 0 means missing: row 0, all zeros, learns nothing.

    **Expiry.** Time is counted in epochs of 1/64 of ``expire_after_s``; a row unseen for longer than that goes at the
    first ``advance`` into a later epoch, and its key is removed in the next ``take_changed``.

    **Eviction.** A table never holds more than ``max_rows`` rows besides the default ones: a key that finds it full
    stays with the default row for that batch, and the next ``admit`` first frees 1/32 of the rows (at least one),
    those of the oldest last seen epoch first, within an epoch by ascending hash of the key.

    Updates are row-wise Adagrad: one accumulator for the vector (the mean square of its gradient) and one for the
    weight (Duchi et al. 2011, averaged over a row as in Mudigere et al. 2022, arXiv:2104.05158). What they start from
    is the beta of ``update``: a state holds sums of squares alone and may go on with another beta.

    **Decay.** With ``accumulator_half_life_s`` a row's accumulators are halved for each half-life since it was last
    seen, in whole epochs: a row that has had millions of sightings then still follows its last weeks.

    Parameters
    ----------
    dim
        Length of the vectors.
    default_keys
        (E,) u64, different and not 0: the key of each column's default row.
    config
        Admission, expiry, bounds and start values.
    """

    def __init__(self, dim: int, default_keys: ArrayLike, config: TableConfig | None = None) -> None:
        self.config = config = config or TableConfig()
        self.default_keys = np.array(default_keys, np.uint64)
        columns = len(self.default_keys)
        check_columns(dim, self.default_keys)
        self.dim = dim
        self._rules = Rules(
            admit_after=config.admit_after,
            max_rows=config.max_rows or kernels.HASHES,
            rotate_after=sketch.rotate_after(config.sketch_bytes),
            columns=columns,
            seed=config.seed,
            scale=config.init_scale,
            from_default=config.start_from_default,
        )
        self._met, self._before = np.empty(0, np.int32), np.empty(0, np.uint64)
        self._rows = TableRows(dim, self.default_keys, config)

    def __len__(self) -> int:
        """Live rows, default rows included."""
        self._rows.finish_sweep()
        return int(self._rows.store.counters[HELD])

    @property
    def numbers(self) -> NDArray[np.float32]:
        """The storage, (capacity, dim + 3): vector, weight, two accumulators. For kernels that read rows in place."""
        return self._rows.store.numbers

    def memory(self) -> TableMemory:
        """Memory in use, by what for."""
        return TableMemory.of(self._rows.store)

    def memory_bytes(self) -> int:
        """Memory in use."""
        return self.memory().total

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Keys (B, E) → rows (B, E) int32; changes nothing. A key without a row gets its column's default row."""
        keys = self._checked(keys)
        rows = np.empty(keys.shape, np.int32)
        kernels.find(self._rows.store, keys, self._rows.expiry.horizon, rows)
        return rows

    def _checked(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        check_keys(keys, len(self.default_keys))
        return np.ascontiguousarray(keys)

    def admit(self, keys: NDArray[np.uint64]) -> Lookup:
        """The rows of keys (B, E), each key counted as sighted once an occurrence, in order; they are seen now.

        Raises
        ------
        MemoryError
            The keys might not fit into this machine's memory. The table is untouched.
        """
        keys, rows, columns = self._checked(keys), self._rows, len(self.default_keys)
        rows.make_room(keys)
        rows.expire_met(keys)
        if len(self._met) < keys.size:  # kept: fresh memory costs more than filling it
            self._met, self._before = np.empty(keys.size, np.int32), np.empty(keys.size, np.uint64)
        unique, before = self._met, self._before
        inverse = np.empty(keys.shape, np.int32)
        count = kernels.admit(rows.store, self._rules, keys, unique, before, inverse)
        unique, epoch = unique[:count].copy(), rows.expiry.epoch
        if rows.copy is not None:
            row_kernels.restore_heads(rows.store, unique, before)
            rows.copy.save(unique)
        if halvings := self.config.halvings_per_epoch:
            row_kernels.decay(rows.store, unique, before, epoch, columns, halvings)
        row_kernels.stamp(rows.store, unique, before, epoch, columns)
        return Lookup(unique, inverse)

    def keys_of(self, rows: NDArray[np.int32]) -> NDArray[np.uint64]:
        """The key of each row (n,); 0 for row 0."""
        keys: NDArray[np.uint64] = self._rows.store.heads[rows, 0]
        return keys

    def gather(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Rows (U,) → their vectors and weights, (U, dim + 1) float32: a copy, aligned to 64 bytes."""
        out = aligned((len(rows), self.dim + 1))
        row_kernels.gather(self._rows.store.numbers, rows, 0, out)
        return out

    def update(
        self,
        rows: NDArray[np.int32],
        gradients: NDArray[np.float32],
        *,
        rates: tuple[float, float],
        betas: tuple[float, float],
    ) -> None:
        """One Adagrad step on rows (U,), each at most once: a += mean(g²); w −= rate · g / √(beta + a).

        ``rates`` and ``betas`` are the vectors' and the weights', in this order. Row 0 is left alone.

        Raises
        ------
        ValueError
            Gradients that are not (U, dim + 1). The table is untouched.
        """
        check_gradients(gradients, len(rows), self.dim)
        self._rows.before_change(rows)
        kernels.update(self._rows.store, rows, np.ascontiguousarray(gradients), *np.array((*rates, *betas), np.float32))

    def advance(self, event_ms: int) -> None:
        """Event time has moved on to ``event_ms``; an earlier time than before changes nothing.

        Raises
        ------
        ValueError
            A time that is negative or beyond the year 2106.
        """
        self._rows.advance(event_ms)

    def take_changed(self) -> Changed:
        """Keys whose rows were made or updated, and keys removed, since the last call."""
        self._rows.finish_sweep()
        counters = self._rows.store.counters
        if counters[NOTED] <= len(self._rows.store.noted):
            candidates = self._rows.store.noted[: counters[NOTED]]
        else:
            candidates = np.arange(1, counters[USED], dtype=np.int32)
        self._rows.before_change(candidates)
        rows = np.empty(len(candidates), np.int32)
        rows = rows[: row_kernels.take_noted(self._rows.store, candidates, rows)]
        counters[NOTED] = 0
        keys = self._rows.store.heads[rows, 0]
        order = np.argsort(keys)
        removed = self._rows.removed.keys()
        removed = removed[self._rows.rows_of(removed) == 0]
        self._rows.removed = Removed()
        return Changed(keys[order], self.gather(rows[order]), removed)

    def assign(self, keys: NDArray[np.uint64], values: NDArray[np.float32]) -> None:
        """Overwrite or make the rows of keys (n,) with values (n, dim + 1), as a reader of deltas does.

        They do not count as changed, belong to no column unless one admitted them, and are seen now.

        Raises
        ------
        ValueError
            Key 0, or values that are not (n, dim + 1). The table is untouched.
        """
        keys = np.ascontiguousarray(keys, np.uint64)
        check_assigned(keys, values, self.dim)
        self._rows.finish_sweep()
        check_room(self._rows.store, len(keys))
        if self._rows.copy is not None:
            self._rows.copy.save(self._rows.rows_of(keys))
        rows = np.empty(len(keys), np.int32)
        kernels.assign(self._rows.store, self._rules, keys, self._rows.expiry.epoch, rows)
        self._rows.store.numbers[rows, : self.dim + 1] = values

    def remove(self, keys: NDArray[np.uint64]) -> None:
        """Take the rows of keys (m,) out, as a reader of deltas does; other keys and default rows are let be."""
        self._rows.finish_sweep()
        rows = np.unique(self._rows.rows_of(np.ascontiguousarray(keys, np.uint64)))
        rows = rows[rows > len(self.default_keys)]
        self._rows.before_change(rows)
        kernels.remove(self._rows.store, rows, np.zeros(0, np.int64))

    def begin_snapshot(self) -> TableCopy:
        """A copy of the table as it is now, to be made while it learns on.

        Raises
        ------
        RuntimeError
            Another copy is being made.
        """
        return self._rows.begin_copy()

    def end_snapshot(self) -> None:
        """Forget the copy that was begun, done or not."""
        self._rows.end_copy()

    def load_snapshot_kernels(self) -> None:
        """Compile or load what a snapshot calls, so that the learning does not wait for it at the first one."""
        trial = EmbeddingTable(self.dim, self.default_keys)
        trial.begin_snapshot()
        trial.admit(self.default_keys[None, :])
        trial.end_snapshot()
        trial.state()

    def state(self) -> TableArrays:
        """Everything that ``restore`` needs to continue bit-equal, by ascending key: copies."""
        copy = self.begin_snapshot()
        while not copy.step():
            pass
        self.end_snapshot()
        return copy.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the table that ``state`` was taken from; it must have had the same dim, columns and config.

        Raises
        ------
        ValueError
            A state that lacks arrays, or of another dim, other columns or another sketch. The table is untouched.
        """
        check_state(state, self.dim, self.default_keys, self.config)
        self._rows = TableRows(self.dim, self.default_keys, self.config)
        fill(self._rows.store, state, self.default_keys)
        self._rows.index()
        kernels.note(self._rows.store, self._rows.rows_of(state["pending"]))
        self._rows.expired, self._rows.evicted = state["expired"].copy(), state["evicted"].copy()
        self._rows.removed = Removed(state["removed"].copy())
        self._rows.expiry.set(int(state["clock"][0]))

    def vocabulary(self) -> list[ColumnStatistics]:
        """Statistics of each embedded column; default rows count among its rows."""
        self._rows.finish_sweep()
        heads = self._rows.store.heads[1 : self._rows.store.counters[USED], 1]
        rows = np.bincount(column_of(heads[live(heads)]), minlength=len(self.default_keys))
        totals = zip(rows, self._rows.store.admitted, self._rows.expired, self._rows.evicted, strict=False)
        return [ColumnStatistics(column, *map(int, total)) for column, total in enumerate(totals)]

    @property
    def waiting(self) -> int:
        """Sightings that the sketch remembers."""
        return int(self._rows.store.counters[[SIGHTED, SIGHTED_BEFORE]].sum())
