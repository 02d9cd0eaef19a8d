"""Kernels that go over rows of the embedding table without asking its index."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel, prefetch
from learners.table.arrays import CHANGED, LIVE, Store

_LOW, _COLUMN = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)
_SIXTEEN, _THIRTY_TWO = np.uint64(16), np.uint64(32)


@kernel
def restore_heads(store: Store, unique: NDArray[np.int32], before: NDArray[np.uint64]) -> None:
    """Put back what ``admit`` replaced."""
    for u in range(len(unique)):
        store.heads[unique[u], 1] = before[u]


@kernel
def stamp(store: Store, unique: NDArray[np.int32], before: NDArray[np.uint64], epoch: int, columns: int) -> None:
    """The rows of a batch were seen now. Default rows have no last seen epoch."""
    now = np.uint64(epoch) << _THIRTY_TWO
    heads = store.heads
    for u in range(len(unique)):
        if u + 32 < len(unique):
            prefetch(heads, 2 * np.int64(unique[u + 32]))
        heads[unique[u], 1] = (before[u] & _LOW) | now if unique[u] > columns else before[u]


@kernel
def decay(
    store: Store, unique: NDArray[np.int32], before: NDArray[np.uint64], epoch: int, columns: int, halvings: float
) -> None:
    """Halve the accumulators of a batch's rows ``halvings`` times for each epoch since they were last seen.

    Default rows have no last seen epoch, and rows seen before there was any time (epoch 0) no age.
    """
    numbers, first = store.numbers, store.numbers.shape[1] - 2
    for u in range(len(unique)):
        row, seen = np.int64(unique[u]), np.int64(before[u] >> _THIRTY_TWO)
        if row > columns and 0 < seen < epoch:
            kept = np.float32(0.5 ** ((epoch - seen) * halvings))
            numbers[row, first] *= kept
            numbers[row, first + 1] *= kept


@kernel
def expired(store: Store, first: int, last: int, horizon: int, rows: NDArray[np.int32]) -> int:
    """List the live rows in [first, last) last seen before ``horizon``; how many."""
    count = 0
    for row in range(first, last):
        head = store.heads[row, 1]
        if head & LIVE and np.int64(head >> _THIRTY_TWO) < horizon:
            rows[count] = row
            count += 1
    return count


@kernel
def gather(numbers: NDArray[np.float32], rows: NDArray[np.int32], first: int, out: NDArray[np.float32]) -> None:
    """Copy the numbers from ``first`` on of rows (n,) to out (n, .)."""
    width = numbers.shape[1]
    for i in range(len(rows)):
        if i + 16 < len(rows):
            ahead = np.int64(rows[i + 16]) * width + first
            prefetch(numbers, ahead)
            prefetch(numbers, ahead + out.shape[1] - 1)
        row = np.int64(rows[i])
        for d in range(out.shape[1]):
            out[i, d] = numbers[row, first + d]


@kernel
def copy_rows(store: Store, first: int, last: int, heads: NDArray[np.uint64], numbers: NDArray[np.float32]) -> None:
    """Copy the rows of [first, last) that were not saved before to the same rows of a snapshot."""
    for row in range(first, last):
        if not store.saved[row]:
            heads[row] = store.heads[row]
            numbers[row] = store.numbers[row]
        elif store.saved[row] == 2:  # it was free: the memory may hold a row of an earlier snapshot
            heads[row, 1] = 0


@kernel
def save_rows(
    store: Store, rows: NDArray[np.int32], done: int, heads: NDArray[np.uint64], numbers: NDArray[np.float32]
) -> None:
    """Copy rows that are about to change to a snapshot that has copied the rows below ``done``."""
    for row in rows:
        if done <= row < len(store.saved) and not store.saved[row]:
            heads[row] = store.heads[row]
            numbers[row] = store.numbers[row]
            store.saved[row] = 1


@kernel
def live_rows(
    heads: NDArray[np.uint64], horizon: int, keys: NDArray[np.uint64], rows: NDArray[np.int32]
) -> tuple[int, int]:
    """List keys and rows of the live heads, and from the end back the keys last seen before ``horizon``; how many."""
    count = expired = 0
    for row in range(len(heads)):
        head = heads[row, 1]
        if head & LIVE:
            if np.int64(head >> _THIRTY_TWO) >= horizon:
                keys[count], rows[count] = heads[row, 0], row
                count += 1
            else:
                expired += 1
                keys[len(keys) - expired] = heads[row, 0]
    return count, expired


@kernel
def export(
    heads: NDArray[np.uint64],
    numbers: NDArray[np.float32],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    accumulators: NDArray[np.float32],
    seen: NDArray[np.uint32],
    column: NDArray[np.uint16],
    changed: NDArray[np.uint64],
) -> int:
    """Copy rows (n,) to values (n, dim + 1), accumulators (n, 2), last seen epochs and columns (n,).

    The keys of those marked as changed are listed; how many.
    """
    width, count, changes = numbers.shape[1], values.shape[1], 0
    for i in range(len(rows)):
        if i + 16 < len(rows):
            ahead = np.int64(rows[i + 16])
            prefetch(heads, 2 * ahead)
            prefetch(numbers, ahead * width)
            prefetch(numbers, ahead * width + width - 1)
        row = np.int64(rows[i])
        for d in range(count):
            values[i, d] = numbers[row, d]
        accumulators[i, 0], accumulators[i, 1] = numbers[row, count], numbers[row, count + 1]
        head = heads[row, 1]
        seen[i], column[i] = np.uint32(head >> _THIRTY_TWO), np.uint16((head >> _SIXTEEN) & _COLUMN)
        if head & CHANGED:
            changed[changes] = heads[row, 0]
            changes += 1
    return changes


@kernel
def take_noted(store: Store, rows: NDArray[np.int32], out: NDArray[np.int32]) -> int:
    """Of these rows those marked as changed, each once, unmarked; how many."""
    count = 0
    for row in rows:
        if store.heads[row, 1] & CHANGED:
            store.heads[row, 1] &= ~CHANGED
            out[count] = row
            count += 1
    return count
