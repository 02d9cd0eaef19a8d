"""Events that came before what they refer to: by impression id, in the order in which they came.

A chain holds the events of one id. Its first one stands in an index of the same kind as that of the join's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stream.join.state import waiting_kernels as kernels

_FIRST_EVENTS = 1024  # a power of two
_FULL_AT = 0.5  # load of the index


class Events(NamedTuple):
    """B events of one input on their way through the join."""

    impression_id: NDArray[np.uint64]  # (B,)
    ts_ms: NDArray[np.int64]  # (B,)
    user_key: NDArray[np.uint64]  # (B,)
    position: NDArray[np.int32]  # (B,)
    value: NDArray[np.float32]  # (B,)
    produced_ms: NDArray[np.int64]  # (B,) Kafka's time of the record
    record: NDArray[np.uint32]  # (B,) number of the record

    def __len__(self) -> int:
        return len(self.impression_id)

    @classmethod
    def joined(cls, parts: Sequence[Events]) -> Events:
        """The events of all parts, one after another; at least one part."""
        return cls.of(np.concatenate([part[at] for part in parts]) for at in range(len(cls._fields)))

    @classmethod
    def of(cls, columns: Iterable[Any]) -> Events:
        """The events of these columns, in the order of the fields."""
        return cls(*columns)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Events:
        """The events at ``index``, in its order."""
        return Events.of(column[index] for column in self.columns())

    def columns(self) -> Iterator[NDArray[Any]]:
        """The columns, in the order of the fields."""
        return iter(self)


_COLUMNS: tuple[DTypeLike, ...] = (np.uint64, np.int64, np.uint64, np.int32, np.float32, np.int64, np.uint32)


class WaitingEvents:
    """A pool of waiting events of the inputs 0, 1, 2, … Times in event time, ms."""

    def __init__(self, salt: int = 0) -> None:
        self._salt = np.uint64(salt)
        self._index = np.zeros(2 * _FIRST_EVENTS, np.uint64)
        self._columns: list[NDArray[Any]] = [np.zeros(_FIRST_EVENTS, dtype) for dtype in _COLUMNS]
        self._input = np.zeros(_FIRST_EVENTS, np.uint8)
        self._due = np.full(_FIRST_EVENTS, kernels.NEVER)
        self._next = np.full(_FIRST_EVENTS, -1, np.int32)
        self._free = np.arange(_FIRST_EVENTS, dtype=np.int32)[::-1].copy()
        self._free_count = _FIRST_EVENTS
        self._keys = 0  # chains
        self._next_due_ms = int(kernels.NEVER)

    def __len__(self) -> int:
        return len(self._due) - self._free_count

    @property
    def bytes(self) -> int:
        """Memory taken."""
        arrays = (self._index, *self._columns, self._input, self._due, self._next, self._free)
        return sum(array.nbytes for array in arrays)

    def add(self, which: int, events: Events, due_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Let events of an input wait until they are taken or the watermark passes ``due_ms``, (B,).

        Returns which of them were added: one that equals a waiting one of its input in id, time and user is not.
        """
        self._make_room(len(events))
        ids = self._free[self._free_count - len(events) : self._free_count][::-1]
        added, chains = kernels.add(
            self._index, self._columns[0], self._columns[1], self._columns[2], self._input, self._due, self._next,
            np.uint8(which), events.impression_id, events.ts_ms, events.user_key, due_ms, ids, self._salt,
        )  # fmt: skip
        count = int(np.count_nonzero(added))
        used = ids[:count].copy()
        self._free_count -= count
        self._keys += int(chains)
        for column, new in zip(self._columns[3:], list(events.columns())[3:], strict=True):
            column[used] = new[added]
        if count:
            self._next_due_ms = min(self._next_due_ms, int(due_ms[added].min()))
        return added

    def take(self, keys: NDArray[np.uint64]) -> list[tuple[int, Events]]:
        """Take out all events of these ids: (input, its events in the order in which they came), by input."""
        if not self._keys:
            return []
        ids, chains = kernels.take(self._index, self._columns[0], self._next, keys, self._salt, len(self))
        self._keys -= int(chains)
        return self._by_input(ids)

    def is_due(self, watermark_ms: int) -> bool:
        """Whether an event may be due before the watermark."""
        return self._next_due_ms < watermark_ms

    def take_due(self, watermark_ms: int) -> list[tuple[int, Events]]:
        """Take out the events that were due before the watermark, by input."""
        if not self.is_due(watermark_ms):
            return []
        ids, chains, next_due = kernels.take_due(
            self._index, self._columns[0], self._due, self._next, watermark_ms, self._salt
        )
        self._next_due_ms = int(next_due)
        self._keys -= int(chains)
        return self._by_input(ids)

    def _by_input(self, ids: NDArray[np.int32]) -> list[tuple[int, Events]]:
        if not len(ids):
            return []
        inputs = self._input[ids]
        taken = []
        for which in np.unique(inputs).tolist():
            of = ids[inputs == which]
            taken.append((which, Events.of(column[of] for column in self._columns)))
        self._due[ids] = kernels.NEVER
        self._free[self._free_count : self._free_count + len(ids)] = ids
        self._free_count += len(ids)
        return taken

    def _make_room(self, count: int) -> None:
        while self._free_count < count:
            size = len(self._due)
            self._columns = [np.concatenate((column, np.zeros(size, column.dtype))) for column in self._columns]
            self._input = np.concatenate((self._input, np.zeros(size, np.uint8)))
            self._due = np.concatenate((self._due, np.full(size, kernels.NEVER)))
            self._next = np.concatenate((self._next, np.full(size, -1, np.int32)))
            free = np.empty(2 * size, np.int32)
            free[: self._free_count] = self._free[: self._free_count]
            free[self._free_count : self._free_count + size] = np.arange(2 * size - 1, size - 1, -1)
            self._free, self._free_count = free, self._free_count + size
        while self._keys + count > len(self._index) * _FULL_AT:
            bigger = np.zeros(2 * len(self._index), np.uint64)
            kernels.spread(self._index, bigger)
            self._index = bigger
