"""What an embedding table refuses, before anything in it has changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.table.arrays import HELD, NO_COLUMN, Store


def check_columns(dim: int, default_keys: NDArray[np.uint64]) -> None:
    """ValueError for a dim or default keys that make no table."""
    if dim < 1:
        raise ValueError(f"dim={dim} must be at least 1: rows would hold no vector. Raise it.")
    if not 0 < len(np.unique(default_keys)) == len(default_keys) < NO_COLUMN or not default_keys.all():
        raise ValueError(
            f"default keys {default_keys} must be 1 to {NO_COLUMN - 1} different keys other than 0: two columns would "
            "share a default row. Hash the fields' names."
        )


def check_keys(keys: NDArray[np.uint64], columns: int) -> None:
    """ValueError for keys that are not (B, columns) of uint64."""
    if keys.ndim != 2 or keys.shape[1] != columns or keys.dtype != np.uint64:
        raise ValueError(
            f"keys {keys.shape} of {keys.dtype} must be (rows, {columns}) of uint64: the column of a key decides its "
            "default row. Pass the embedded columns of the ids."
        )


def check_gradients(gradients: NDArray[np.float32], rows: int, dim: int) -> None:
    """ValueError for gradients that are not (rows, dim + 1)."""
    if gradients.shape != (rows, dim + 1):
        raise ValueError(
            f"gradients {gradients.shape} must be ({rows}, {dim + 1}), one for each row: others would move the wrong "
            "rows. Pass the sums in the order of Lookup.unique."
        )


def check_assigned(keys: NDArray[np.uint64], values: NDArray[np.float32], dim: int) -> None:
    """ValueError for key 0, or values that are not (n, dim + 1)."""
    if values.shape != (len(keys), dim + 1) or keys.ndim != 1 or not keys.all():
        raise ValueError(
            f"{len(keys)} keys and values {values.shape} must be as many rows of {dim} + 1 numbers, and no key 0: a "
            "missing id has no row. Reload a snapshot."
        )


def check_room(store: Store, more: int) -> None:
    """MemoryError where so many more rows might not fit."""
    rows, capacity = int(store.counters[HELD]), len(store.heads)
    if rows + more >= capacity:
        raise MemoryError(
            f"{rows} rows and up to {more} more exceed {capacity}, what max_rows or this machine's memory allow: "
            "nothing was done with these keys. Set expire_after_s or a max_rows that fits."
        )
