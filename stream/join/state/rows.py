"""The arrays of the join's rows: made, and made longer or shorter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.join.state import kernels as kernels
from stream.join.state.kernels import HEAD, NEVER, TAIL, Rows

_BY_INDEX = ("keys", "users", "times", "states", "served", "displayed")  # columns of `Rows`
_BY_NUMBER = ("exposed_keys", "exposed_users", "exposed_times", "exposed_clicked")
FIRST_SLOTS = FIRST_EXPOSED = 1024  # powers of two, as all sizes of the index and the ring
FULL_AT = 0.75  # load of the index


def no_rows() -> Rows:
    """The arrays of a join that holds nothing."""
    return Rows(
        slots=np.zeros(FIRST_SLOTS, np.uint64),
        counters=np.zeros(3, np.int64),
        keys=np.zeros(0, np.uint64),
        users=np.zeros(0, np.uint32),
        times=np.zeros(0, np.int64),
        states=np.zeros(0, np.uint8),
        served=np.zeros(0, np.uint32),
        displayed=np.zeros(0, np.uint32),
        live=np.zeros(0, np.int32),
        due=np.zeros(0, np.int64),
        exposed_keys=np.zeros(FIRST_EXPOSED, np.uint64),
        exposed_users=np.zeros(FIRST_EXPOSED, np.uint32),
        exposed_times=np.zeros(FIRST_EXPOSED, np.int64),
        exposed_clicked=np.zeros(FIRST_EXPOSED, np.bool_),
    )


def with_blocks(rows: Rows, blocks: int) -> Rows:
    """Room for so many blocks of pending rows, more or fewer than before."""
    changed = {name: _resized(getattr(rows, name), blocks * kernels.BLOCK) for name in _BY_INDEX}
    due = _resized(rows.due, blocks, NEVER)
    return rows._replace(**changed, live=_resized(rows.live, blocks), due=due)


def _resized(column: NDArray[Any], size: int, fill: int | np.int64 = 0) -> NDArray[Any]:
    return column[:size].copy() if size < len(column) else longer(column, size - len(column), fill)


def longer(column: NDArray[Any], by: int, fill: int | np.int64 = 0) -> NDArray[Any]:
    """A copy with so many rows more."""
    return np.concatenate((column, np.full(by, fill, column.dtype)))


def with_exposed(rows: Rows, count: int) -> Rows:
    """A ring for at least so many exposed rows."""
    size = FIRST_EXPOSED
    while size < count:
        size *= 2
    numbers = np.arange(int(rows.counters[HEAD]), int(rows.counters[TAIL]))
    moved = {}
    for name in _BY_NUMBER:
        old = getattr(rows, name)
        moved[name] = np.zeros(size, old.dtype)
        moved[name][numbers & (size - 1)] = old[numbers & (len(old) - 1)]
    return rows._replace(**moved)


def with_slots(index: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The index with room for so many references."""
    size = FIRST_SLOTS
    while count > size * FULL_AT:
        size *= 2
    spread = np.zeros(size, np.uint64)
    kernels.spread(index, spread)
    return spread
