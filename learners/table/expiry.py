"""When rows of the embedding table go: by age, or to make room; and the keys that went."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from learners.table import kernels as kernels
from learners.table import row_kernels
from learners.table.arrays import ALWAYS, USED, Store, live, seen_of
from learners.table.config import TableConfig

_MAX_REMOVED_LISTS = 256  # then they are made one, without repetition


class Expiry:
    """The epoch of event time, and how far the look for rows that have expired in it has come.

    Rows last seen before ``horizon`` have expired, for every reader; in memory they go as they are found.
    """

    def __init__(self, config: TableConfig) -> None:
        self._config = config
        self.epoch = self.horizon = 0
        self._next = self._left = 0  # rows

    @property
    def looking(self) -> bool:
        """Whether there may be expired rows in memory."""
        return self._left > 0

    def set(self, epoch: int) -> None:
        """Go on in an epoch, with no expired rows in memory."""
        kept = self._config.epochs_kept
        self.epoch, self.horizon = epoch, 0 if kept is None else max(0, epoch - kept)

    def advance(self, event_ms: int, store: Store) -> None:
        """Time has moved on; in a later epoch all rows are looked at again. ValueError for an impossible time."""
        epoch = event_ms // self._config.epoch_ms
        if not 0 <= epoch < int(ALWAYS):
            raise ValueError(
                f"event time {event_ms} ms must lie between 1970 and 2106: every row would expire at once. Reject "
                "events with such times."
            )
        if epoch > self.epoch:
            self.set(epoch)
            self._left = int(store.counters[USED]) if self.horizon else 0

    def found(self, store: Store, most: int | None = None) -> Iterator[NDArray[np.int32]]:
        """Expired rows, to be dropped at once, where the last call stopped: ``most`` rows are looked at, or all."""
        most = self._left if most is None else most
        while most > 0 and self._left > 0:
            used = int(store.counters[USED])
            first = self._next if self._next < used else 0
            last = min(used, first + min(most, self._left))
            rows = np.empty(last - first, np.int32)
            yield rows[: row_kernels.expired(store, first, last, self.horizon, rows)]
            self._next = last
            self._left -= last - first
            most -= last - first


def oldest(store: Store, first: int, count: int) -> NDArray[np.int64]:
    """``count`` rows from ``first`` on: by last seen epoch, within one by ascending hash of the key."""
    heads = store.heads[first : store.counters[USED]]
    rows = np.flatnonzero(live(heads[:, 1]))
    seen = seen_of(heads[rows, 1])
    cut = np.partition(seen, count - 1)[count - 1]
    older, edge = rows[seen < cut], rows[seen == cut]
    hashes = np.empty(len(edge), np.uint64)
    kernels.mixed_all(heads[edge, 0], hashes)
    return first + np.concatenate((older, edge[np.argsort(hashes)[: count - len(older)]]))


class Removed:
    """Keys that lost their row; some have one again."""

    def __init__(self, *lists: NDArray[np.uint64]) -> None:
        self._lists = list(lists)

    def add(self, keys: NDArray[np.uint64]) -> None:
        """These too."""
        self._lists.append(keys)
        if len(self._lists) > _MAX_REMOVED_LISTS:
            self._lists = [self.keys()]

    def keys(self) -> NDArray[np.uint64]:
        """All of them, ascending, each once."""
        return np.unique(np.concatenate(self.lists()))

    def lists(self) -> list[NDArray[np.uint64]]:
        """All of them, in any order and number; at least one list."""
        return [np.empty(0, np.uint64), *self._lists]
