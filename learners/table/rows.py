"""The rows of an embedding table as they come and go: room, expiry, eviction, a copy beside the learning."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.table import kernels as kernels
from learners.table.arrays import HELD, NEW, SIGHTED, SIGHTED_BEFORE, TURN, USED, Store, seen_of
from learners.table.checks import check_room
from learners.table.config import TableConfig
from learners.table.expiry import Expiry, Removed, oldest
from learners.table.memory import most_rows
from learners.table.state import TableArrays, TableCopy

_SWEPT_ROWS_PER_ADVANCE = 1 << 15
_EVICTION_DIVISOR = 32  # a full table frees one in so many rows
_FIRST_SLOTS = 64


class TableRows:
    """What an `EmbeddingTable` holds; only the default rows at first.

    store : the arrays · expiry : the epoch of event time · removed : keys removed since ``take_changed`` · copy : a
    snapshot in the making · expired, evicted : (E,) rows that went, by column.
    """

    def __init__(self, dim: int, default_keys: NDArray[np.uint64], config: TableConfig) -> None:
        self._dim, self._default_keys, self._config = dim, default_keys, config
        columns = len(default_keys)
        self._halvings = config.halvings_per_epoch
        self.store = Store.empty(most_rows(dim, columns, config.max_rows), dim, default_keys, config)
        self.copy: TableCopy | None = None
        self.expired, self.evicted = np.zeros(columns, np.int64), np.zeros(columns, np.int64)
        self.removed, self.expiry = Removed(), Expiry(config)
        self.index()

    def index(self) -> None:
        """Build the index of the rows that are there."""
        self.store.slots[:_FIRST_SLOTS] = 0
        self.store.counters[NEW] = max(_FIRST_SLOTS, int(self.store.counters[HELD] * 1.3))
        kernels.build_index(self.store)

    def make_room(self, keys: NDArray[np.uint64]) -> None:
        """Make room for keys, by eviction where the table is full. Raises MemoryError."""
        count, most = int(self.store.counters[HELD]) - len(self._default_keys), self._config.max_rows
        if most is None:
            check_room(self.store, keys.size)
        elif count + keys.size >= most:  # what has expired must not count when the table is full
            self.finish_sweep()
            if self.store.counters[HELD] - len(self._default_keys) >= most:
                rows = oldest(self.store, 1 + len(self._default_keys), max(1, most // _EVICTION_DIVISOR))
                self.drop(rows, self.evicted)

    def expire_met(self, keys: NDArray[np.uint64]) -> None:
        """Take out expired rows of these keys now: they are about to be sighted as new ones."""
        if not self.expiry.looking:
            return
        rows = np.unique(self.rows_of(keys.reshape(-1)))
        rows = rows[seen_of(self.store.heads[rows, 1]) < self.expiry.horizon]
        self.drop(rows[rows > 0], self.expired)

    def rows_of(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The row of each key (n,), 0 for one without."""
        rows = np.empty(len(keys), np.int32)
        kernels.rows_of(self.store, keys, rows)
        return rows

    def drop(self, rows: NDArray[np.integer[Any]], counts: NDArray[np.int64]) -> None:
        """Take rows out and add them to ``counts`` by column."""
        if not len(rows):
            return
        gone = rows.astype(np.int32)
        self.before_change(gone)
        self.removed.add(self.store.heads[gone, 0])
        kernels.remove(self.store, gone, counts)

    def before_change(self, rows: NDArray[np.int32]) -> None:
        """Rows are about to change: a copy in the making takes them first."""
        if self.copy is not None:
            self.copy.save(rows)

    def advance(self, event_ms: int) -> None:
        """Event time has moved on to ``event_ms``; an earlier time than before changes nothing.

        Raises
        ------
        ValueError
            A time that is negative or beyond the year 2106.
        """
        before = self.expiry.epoch
        self.expiry.advance(event_ms, self.store)
        if self._halvings and 0 < before < self.expiry.epoch:
            self._decay_default_rows(self.expiry.epoch - before)
        for rows in self.expiry.found(self.store, _SWEPT_ROWS_PER_ADVANCE):
            self.drop(rows, self.expired)

    def _decay_default_rows(self, epochs: int) -> None:
        """They have no last seen epoch: they decay as time passes."""
        rows = np.arange(1, 1 + len(self._default_keys), dtype=np.int32)
        self.before_change(rows)
        self.store.numbers[rows, self._dim + 1 :] *= np.float32(0.5 ** (epochs * self._halvings))

    def finish_sweep(self) -> None:
        """Take out every row that has expired."""
        for rows in self.expiry.found(self.store):
            self.drop(rows, self.expired)

    def begin_copy(self) -> TableCopy:
        """A copy of the table as it is now, to be made while it learns on.

        Raises
        ------
        RuntimeError
            Another copy is being made.
        """
        if self.copy is not None and not self.copy.done:
            raise RuntimeError(
                "a snapshot has begun and is not done, there can be one at a time: its rows would be saved twice. "
                "Call its step() until done, or end_snapshot()."
            )
        self.store = self.store._replace(saved=np.zeros(int(self.store.counters[USED]), np.uint8))
        horizon, removed = self.expiry.horizon, self.removed.lists()
        self.copy = TableCopy(self.store, horizon, removed, self._rest())
        return self.copy

    def end_copy(self) -> None:
        """Forget the copy that was begun, done or not."""
        self.copy = None
        self.store = self.store._replace(saved=np.empty(0, np.uint8))

    def _rest(self) -> TableArrays:
        counters = self.store.counters
        return {
            "sketch": self.store.sketch.copy(),
            "sightings": counters[[TURN, SIGHTED, SIGHTED_BEFORE]],
            "admitted": self.store.admitted.copy(),
            "expired": self.expired.copy(),
            "evicted": self.evicted.copy(),
            "clock": np.array([self.expiry.epoch], np.int64),
        }
