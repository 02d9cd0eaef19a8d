"""The newest rows of a stream in bounded memory, for learners that refit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLD = np.uint64(32)


class Remembered(NamedTuple):
    """n rows, oldest first.

    codes : (n, E) uint32, the high halves of the embedded ids, 0 for a missing one · dense : (n, K) float32 ·
    target : (n,) float32 · weight : (n,) float32.
    """

    codes: NDArray[np.uint32]
    dense: NDArray[np.float32]
    target: NDArray[np.float32]
    weight: NDArray[np.float32]


class RowBuffer:
    """A ring of at most ``size`` rows of E codes and K dense inputs; it grows to that size as rows come."""

    def __init__(self, size: int, embedded: int, dense: int) -> None:
        self._size = size
        self._added = 0
        self._rows = _empty(0, embedded, dense)

    def __len__(self) -> int:
        return min(self._added, self._size)

    def add(self, rows: Remembered) -> None:
        """Append rows; the oldest make room."""
        skipped = max(0, len(rows.target) - self._size)
        self._grow(min(self._size, self._added + len(rows.target)))
        slots = np.arange(self._added + skipped, self._added + len(rows.target)) % self._size
        for ring, new in zip(self._rows, rows, strict=True):
            ring[slots] = new[skipped:]
        self._added += len(rows.target)

    def rows(self) -> Remembered:
        """Copies, oldest first."""
        first = self._added % self._size if self._added > self._size else 0
        order = (np.arange(len(self)) + first) % self._size
        rings = self._rows
        return Remembered(rings.codes[order], rings.dense[order], rings.target[order], rings.weight[order])

    def _grow(self, needed: int) -> None:
        room = len(self._rows.target)
        if needed > room:
            rows = _empty(min(self._size, max(needed, 2 * room)), self._rows.codes.shape[1], self._rows.dense.shape[1])
            for ring, old in zip(rows, self._rows, strict=True):
                ring[:room] = old
            self._rows = rows

    def state(self) -> dict[str, NDArray[Any]]:
        """The rows by name."""
        return dict(self.rows()._asdict())

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Put a ``state`` into this empty buffer. Raises ValueError for more rows or other widths than it holds."""
        rows = Remembered(state["codes"], state["dense"], state["target"], state["weight"])
        ours, theirs = [ring.shape[1:] for ring in self._rows], [array.shape[1:] for array in rows]
        if len(rows.target) > self._size or ours != theirs:
            raise ValueError(
                f"a state of {len(rows.target)} rows of widths {theirs} does not fit a buffer of {self._size} rows of "
                f"{ours}: it came from another config or feature spec. Use those that it was learned with."
            )
        self.add(rows)


def codes_of(ids: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Ids (B, E) as 32-bit codes: enough to tell apart the few values of a column that a tree can split on."""
    codes: NDArray[np.uint32] = (ids >> FOLD).astype(np.uint32)
    return codes


def _empty(rows: int, embedded: int, dense: int) -> Remembered:
    return Remembered(
        np.empty((rows, embedded), np.uint32),
        np.empty((rows, dense), np.float32),
        np.empty(rows, np.float32),
        np.empty(rows, np.float32),
    )
