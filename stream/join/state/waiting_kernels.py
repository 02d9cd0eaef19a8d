"""Kernels of the events that wait: chains of events by impression id, the first of each in an index.

The index is of the same kind as that of the join's rows (`stream.join.state.kernels`), and copied from it, because a
kernel calls only kernels of its own file (`learners.kernel`).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel

Integer: TypeAlias = int | np.signedinteger

_LOW, _32, _33 = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(33)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
NEVER = np.int64(1 << 62)


@kernel
def _hashed(key: np.uint64, salt: np.uint64) -> np.uint64:
    key ^= salt
    key ^= key >> _33
    key *= _MIX_1
    key ^= key >> _33
    key *= _MIX_2
    return key >> _32


@kernel
def _find(
    index: NDArray[np.uint64], keys: NDArray[np.uint64], key: np.uint64, hashed: np.uint64
) -> tuple[Integer, Integer]:
    """The first event of a key, or −1, and the slot where it is or belongs."""
    mask = len(index) - 1
    slot = np.int64(hashed) & mask
    while index[slot] != 0:
        if index[slot] >> _32 == hashed:
            first = np.int64(index[slot] & _LOW) - 1
            if keys[first] == key:
                return first, slot
        slot = (slot + 1) & mask
    return -1, slot


@kernel
def _remove(index: NDArray[np.uint64], slot: Integer) -> None:
    mask = len(index) - 1
    at = slot
    while True:
        at = (at + 1) & mask
        if index[at] == 0:
            break
        home = np.int64(index[at] >> _32) & mask
        if ((at - home) & mask) >= ((at - slot) & mask):
            index[slot] = index[at]
            slot = at
    index[slot] = 0


@kernel
def spread(old: NDArray[np.uint64], new: NDArray[np.uint64]) -> None:
    """Fill an empty index with the slots of a smaller one."""
    mask = len(new) - 1
    for entry in old:
        if entry != 0:
            slot = np.int64(entry >> _32) & mask
            while new[slot] != 0:
                slot = (slot + 1) & mask
            new[slot] = entry


@kernel
def add(
    index: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    users: NDArray[np.uint64],
    inputs: NDArray[np.uint8],
    due: NDArray[np.int64],
    following: NDArray[np.int32],
    which: np.uint8,
    new_keys: NDArray[np.uint64],
    new_times: NDArray[np.int64],
    new_users: NDArray[np.uint64],
    new_due: NDArray[np.int64],
    ids: NDArray[np.int32],
    salt: np.uint64,
) -> tuple[NDArray[np.bool_], int]:
    """Append each event to the chain of its key; which were added, and how many chains were begun."""
    added = np.ones(len(new_keys), np.bool_)
    used, chains = 0, 0
    for i in range(len(new_keys)):
        hashed = _hashed(new_keys[i], salt)
        first, slot = _find(index, keys, new_keys[i], hashed)
        last: Integer = -1
        at = first
        while at >= 0:
            if inputs[at] == which and times[at] == new_times[i] and users[at] == new_users[i]:
                added[i] = False
                break
            last, at = at, following[at]
        if not added[i]:
            continue
        event = ids[used]
        used += 1
        keys[event], times[event], users[event] = new_keys[i], new_times[i], new_users[i]
        inputs[event], due[event] = which, new_due[i]
        following[event] = -1
        if first < 0:
            index[slot] = hashed << _32 | np.uint64(event + 1)
            chains += 1
        else:
            following[last] = event
    return added, chains


@kernel
def take(
    index: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    following: NDArray[np.int32],
    wanted: NDArray[np.uint64],
    salt: np.uint64,
    most: int,
) -> tuple[NDArray[np.int32], int]:
    """The chains of keys, one after another, and how many they were; they are no longer in the index."""
    ids = np.empty(most, np.int32)
    count, chains = 0, 0
    for key in wanted:
        at, slot = _find(index, keys, key, _hashed(key, salt))
        if at >= 0:
            _remove(index, slot)
            chains += 1
        while at >= 0:
            ids[count] = at
            count += 1
            at = following[at]
    return ids[:count].copy(), chains


@kernel
def take_due(
    index: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    due: NDArray[np.int64],
    following: NDArray[np.int32],
    watermark: int,
    salt: np.uint64,
) -> tuple[NDArray[np.int32], int, Integer]:
    """Events due before the watermark, how many chains that ended, and when the next is due."""
    ids = np.empty(len(due), np.int32)
    count, chains, next_due = 0, 0, NEVER
    for event in range(len(due)):
        if due[event] >= watermark:
            next_due = min(next_due, due[event])
            continue
        ids[count] = event
        count += 1
        first, slot = _find(index, keys, keys[event], _hashed(keys[event], salt))
        if first == event:
            if following[event] < 0:
                _remove(index, slot)
                chains += 1
            else:
                index[slot] = (index[slot] >> _32) << _32 | np.uint64(following[event] + 1)
        else:
            at = first
            while following[at] != event:
                at = following[at]
            following[at] = following[event]
    return ids[:count].copy(), chains, next_due
