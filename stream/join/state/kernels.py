"""Kernels of the join: the index of its rows, and what an event does to the row that it names.

**Index.** Open addressing with linear probing; a slot is ``hash << 32 | reference + 1``, 0 is empty. The hash in the
slot spares a look at the row while the index is probed, moved or grown. Hashes are salted: who chooses ids cannot make
them collide. A reference is the index of a pending row (below ``EXPOSED``) or, with that bit, an exposed row's number.

**Rows** go through the states ``SERVED`` → ``DISPLAYED`` → exposed, where only key, display time and whether they were
clicked are left. Every event is applied by itself and in the order of its input, as in a loop over dicts; what happens
to one impression id never depends on another.

**Users.** A row keeps 32 salted bits of the user that it was served to. An event of another user is refused before
anything else: who guesses an impression id displays or clicks nothing. One in 2³² would pass, and nobody can search for
it without the salt.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel, prefetch

Integer: TypeAlias = int | np.signedinteger

FREE, SERVED, DISPLAYED, CLICKED, DUE = (np.uint8(state) for state in range(5))
"""States of a pending row. ``CLICKED`` is displayed and clicked, ``DUE`` displayed and let through: both are
exposed with the next output."""

DUPLICATE, WAIT, LATE, DISPLAY, CLICK, FOREIGN, ASTRAY = range(7)
"""What becomes of an event: nothing · it waits for its row · it is too late · it is the row's display · its click ·
the row was served to another user · its user's rows are in another partition (which no kernel says)."""

COUNT, HEAD, TAIL = range(3)
"""Indices into ``Rows.counters``: references in the index, number of the oldest exposed row, of the next one."""

BLOCK = 4096
"""Pending rows a block; the block of a row is its index divided by this."""

EXPOSED = 1 << 31
_LOW = np.uint64(0xFFFFFFFF)
_32, _33 = np.uint64(32), np.uint64(33)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)  # MurmurHash3 fmix64
_PREFETCHED_KEYS = 12
NEVER = np.int64(1 << 62)


class Rows(NamedTuple):
    """The rows that a partition's join holds.

    slots : (capacity,) u64, the index, a power of two · counters : (3,) i64 ·
    keys, users, times, states, served, displayed : pending rows by index: impression id; bits of the user; served ms,
    then display ms; state; numbers of the records that served and displayed it, the latter replaced by its row among
    the exposures once it is exposed · live, due : by block: rows in it; no served row's horizon ends before, ms ·
    exposed_keys, exposed_users, exposed_times, exposed_clicked : a ring by number, a power of two long.
    """

    slots: NDArray[np.uint64]
    counters: NDArray[np.int64]
    keys: NDArray[np.uint64]
    users: NDArray[np.uint32]
    times: NDArray[np.int64]
    states: NDArray[np.uint8]
    served: NDArray[np.uint32]
    displayed: NDArray[np.uint32]
    live: NDArray[np.int32]
    due: NDArray[np.int64]
    exposed_keys: NDArray[np.uint64]
    exposed_users: NDArray[np.uint32]
    exposed_times: NDArray[np.int64]
    exposed_clicked: NDArray[np.bool_]


class Open(NamedTuple):
    """Unfinished rows of an input's records, counted by record: record n at n − base."""

    counts: NDArray[np.int32]
    base: int


class Rules(NamedTuple):
    """What decides, in ms.

    An impression displayed at ``forgotten`` or before may have been joined and forgotten; so may a row that was served
    up to ``lateness`` after that: what is read again can hold a repeated display of a later time.
    """

    display_horizon: int
    click_horizon: int
    forgotten: int
    lateness: int
    salt: np.uint64


@kernel
def _hashed(key: np.uint64, salt: np.uint64) -> np.uint64:
    """32 bits of which every one depends on every bit of the key and the salt."""
    key ^= salt
    key ^= key >> _33
    key *= _MIX_1
    key ^= key >> _33
    key *= _MIX_2
    return key >> _32


@kernel
def _find(
    index: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    exposed_keys: NDArray[np.uint64],
    key: np.uint64,
    hashed: np.uint64,
) -> tuple[Integer, Integer]:
    """The reference of a key, or −1, and the slot where it is or belongs."""
    mask = len(index) - 1
    slot = np.int64(hashed) & mask
    while index[slot] != 0:
        if index[slot] >> _32 == hashed:
            reference = np.int64(index[slot] & _LOW) - 1
            if reference < EXPOSED:
                if keys[reference] == key:
                    return reference, slot
            elif exposed_keys[(reference - EXPOSED) & (len(exposed_keys) - 1)] == key:
                return reference, slot
        slot = (slot + 1) & mask
    return -1, slot


@kernel
def _remove(index: NDArray[np.uint64], slot: Integer) -> None:
    """Empty a slot; those behind it that belong before it or at it move back."""
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
def look_up(rows: Rows, keys: NDArray[np.uint64], salt: np.uint64) -> NDArray[np.int64]:
    """The references of keys, −1 for unknown ones, (B,)."""
    found = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        if i + _PREFETCHED_KEYS < len(keys):
            prefetch(rows.slots, np.int64(_hashed(keys[i + _PREFETCHED_KEYS], salt)) & (len(rows.slots) - 1))
        found[i], _ = _find(rows.slots, rows.keys, rows.exposed_keys, keys[i], _hashed(keys[i], salt))
    return found


@kernel
def add_served(
    rows: Rows,
    rules: Rules,
    opened: Open,
    keys: NDArray[np.uint64],
    users: NDArray[np.uint64],
    served_ms: NDArray[np.int64],
    records: NDArray[np.uint32],
    free: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Make the first of each unknown key a pending row at the next index of ``free``; which are new, (B,)."""
    index, row_keys, times, states, served = rows.slots, rows.keys, rows.times, rows.states, rows.served
    exposed_keys, live, due, salt = rows.exposed_keys, rows.live, rows.due, rules.salt
    fresh = np.empty(len(keys), np.bool_)
    used = 0
    for i in range(len(keys)):
        if i + _PREFETCHED_KEYS < len(keys):
            prefetch(index, np.int64(_hashed(keys[i + _PREFETCHED_KEYS], salt)) & (len(index) - 1))
        hashed = _hashed(keys[i], salt)
        reference, slot = _find(index, row_keys, exposed_keys, keys[i], hashed)
        fresh[i] = reference < 0
        if reference >= 0:
            opened.counts[np.uint32(records[i] - np.uint32(opened.base))] -= 1
            continue
        row = free[used]
        used += 1
        row_keys[row], times[row], states[row], served[row] = keys[i], served_ms[i], SERVED, records[i]
        rows.users[row] = np.uint32(_hashed(users[i], salt))
        index[slot] = hashed << _32 | np.uint64(row + 1)
        block = row // BLOCK
        live[block] += 1
        due[block] = min(due[block], served_ms[i] + rules.display_horizon)
    rows.counters[COUNT] += used
    return fresh


@kernel
def _is_of(
    users: NDArray[np.uint32], exposed_users: NDArray[np.uint32], reference: Integer, user: np.uint64, salt: np.uint64
) -> bool:
    """Whether a row was served to this user."""
    if reference >= EXPOSED:
        return bool(exposed_users[(reference - EXPOSED) & (len(exposed_users) - 1)] == np.uint32(_hashed(user, salt)))
    return bool(users[reference] == np.uint32(_hashed(user, salt)))


@kernel
def _finish(counts: NDArray[np.int32], base: Integer, record: np.uint32) -> None:
    counts[np.uint32(record - np.uint32(base))] -= 1


@kernel
def apply_impressions(
    rows: Rows,
    rules: Rules,
    impressions: Open,
    keys: NDArray[np.uint64],
    users: NDArray[np.uint64],
    times: NDArray[np.int64],
    records: NDArray[np.uint32],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Display rows. What became of each event and the reference that it named (−1: none), (B,) each."""
    outcome, reference = np.empty(len(keys), np.uint8), np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        if i + _PREFETCHED_KEYS < len(keys):
            prefetch(rows.slots, np.int64(_hashed(keys[i + _PREFETCHED_KEYS], rules.salt)) & (len(rows.slots) - 1))
        found, _ = _find(rows.slots, rows.keys, rows.exposed_keys, keys[i], _hashed(keys[i], rules.salt))
        reference[i] = found
        if found < 0:
            outcome[i] = LATE if times[i] <= rules.forgotten else WAIT
        elif not _is_of(rows.users, rows.exposed_users, found, users[i], rules.salt):
            outcome[i] = FOREIGN
        elif found >= EXPOSED or rows.states[found] != SERVED:
            outcome[i] = DUPLICATE
            _finish(impressions.counts, impressions.base, records[i])
        elif (
            times[i] <= rules.forgotten
            or rows.times[found] <= rules.forgotten + rules.lateness
            or times[i] > rows.times[found] + rules.display_horizon
        ):
            outcome[i] = LATE
        else:
            outcome[i] = DISPLAY
            rows.times[found], rows.states[found], rows.displayed[found] = times[i], DISPLAYED, records[i]
    return outcome, reference


@kernel
def apply_clicks(
    rows: Rows,
    rules: Rules,
    clicks: Open,
    keys: NDArray[np.uint64],
    users: NDArray[np.uint64],
    times: NDArray[np.int64],
    records: NDArray[np.uint32],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Click displayed rows. What became of each click and the reference that it named, (B,) each."""
    outcome, reference = np.empty(len(keys), np.uint8), np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        if i + _PREFETCHED_KEYS < len(keys):
            prefetch(rows.slots, np.int64(_hashed(keys[i + _PREFETCHED_KEYS], rules.salt)) & (len(rows.slots) - 1))
        found, _ = _find(rows.slots, rows.keys, rows.exposed_keys, keys[i], _hashed(keys[i], rules.salt))
        reference[i] = found
        if found >= 0 and not _is_of(rows.users, rows.exposed_users, found, users[i], rules.salt):
            outcome[i] = FOREIGN
            continue
        if found < 0 or (found < EXPOSED and rows.states[found] == SERVED):
            outcome[i] = WAIT
            continue
        at = (found - EXPOSED) & (len(rows.exposed_keys) - 1)
        if found >= EXPOSED:
            display_ms, clicked = rows.exposed_times[at], rows.exposed_clicked[at]
        else:
            display_ms, clicked = rows.times[found], rows.states[found] == CLICKED
        if not clicked and times[i] > display_ms + rules.click_horizon:
            outcome[i] = LATE
            continue
        outcome[i] = DUPLICATE if clicked else CLICK
        _finish(clicks.counts, clicks.base, records[i])
        if found >= EXPOSED:
            rows.exposed_clicked[at] = True
        else:
            rows.states[found] = CLICKED
    return outcome, reference


@kernel
def undisplayed_rows(rows: Rows, rules: Rules, blocks: NDArray[np.int64], watermark: int) -> NDArray[np.int64]:
    """Served rows whose horizon ends before the watermark: their indices. Notes when each of the blocks is due next."""
    found = np.empty(len(blocks) * BLOCK, np.int64)
    count = 0
    for block in blocks:
        due = NEVER
        for row in range(block * BLOCK, (block + 1) * BLOCK):
            if rows.states[row] != SERVED:
                continue
            end = rows.times[row] + rules.display_horizon
            if end >= watermark:
                due = min(due, end)
            else:
                found[count] = row
                count += 1
        rows.due[block] = due
    return found[:count].copy()


@kernel
def due_displays(
    rows: Rows, waiting: NDArray[np.uint32], until_ms: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Of displays that wait, by their rows: those up to ``until_ms``, now ``DUE``, and those that wait on.

    A row that was clicked, or whose index another row has since, is in neither.
    """
    due, later = np.empty(len(waiting), np.int64), np.empty(len(waiting), np.uint32)
    due_count, later_count = 0, 0
    for row in waiting:
        if rows.states[row] != DISPLAYED:
            continue
        if rows.times[row] <= until_ms:
            rows.states[row] = DUE
            due[due_count] = row
            due_count += 1
        else:
            later[later_count] = row
            later_count += 1
    return due[:due_count].copy(), later[:later_count].copy()


@kernel
def expose(rows: Rows, rules: Rules, served: Open, impressions: Open, indices: NDArray[np.int64]) -> None:
    """Expose displayed rows, in this order; their indices stay taken until their columns were read."""
    index, ring = rows.slots, len(rows.exposed_keys) - 1
    number = rows.counters[TAIL]
    for i in range(len(indices)):
        row = indices[i]
        if i + _PREFETCHED_KEYS < len(indices):
            ahead = _hashed(rows.keys[indices[i + _PREFETCHED_KEYS]], rules.salt)
            prefetch(index, np.int64(ahead) & (len(index) - 1))
        key = rows.keys[row]
        _, slot = _find(index, rows.keys, rows.exposed_keys, key, _hashed(key, rules.salt))
        _finish(served.counts, served.base, rows.served[row])
        _finish(impressions.counts, impressions.base, rows.displayed[row])
        at = number & ring
        rows.exposed_keys[at], rows.exposed_users[at], rows.exposed_times[at] = key, rows.users[row], rows.times[row]
        rows.exposed_clicked[at] = rows.states[row] == CLICKED
        index[slot] = (index[slot] >> _32) << _32 | np.uint64(EXPOSED + (number & (EXPOSED - 1)) + 1)
        number += 1
        rows.states[row], rows.displayed[row] = FREE, np.uint32(i)
    rows.counters[TAIL] = number


@kernel
def drop_undisplayed(rows: Rows, rules: Rules, served: Open, indices: NDArray[np.int64]) -> None:
    """Forget served rows that nobody saw; their indices are free at once."""
    for row in indices:
        key = rows.keys[row]
        _, slot = _find(rows.slots, rows.keys, rows.exposed_keys, key, _hashed(key, rules.salt))
        _remove(rows.slots, slot)
        _finish(served.counts, served.base, rows.served[row])
        rows.states[row] = FREE
        rows.live[row // BLOCK] -= 1
    rows.counters[COUNT] -= len(indices)


@kernel
def release(rows: Rows, indices: NDArray[np.int64]) -> None:
    """Give back the indices of exposed rows whose columns were read."""
    for row in indices:
        rows.live[row // BLOCK] -= 1


@kernel
def forget(rows: Rows, rules: Rules, before_ms: int, most: int) -> tuple[int, Integer]:
    """Forget exposed rows, oldest first, while they were displayed before ``before_ms``, at most so many.

    Returns how many were forgotten, and the latest of their display times (−``NEVER``: none).
    """
    ring, newest = len(rows.exposed_keys) - 1, -NEVER
    first, end = rows.counters[HEAD], rows.counters[TAIL]
    head = first
    while head < end and head - first < most and rows.exposed_times[head & ring] < before_ms:
        key = rows.exposed_keys[head & ring]
        _, slot = _find(rows.slots, rows.keys, rows.exposed_keys, key, _hashed(key, rules.salt))
        _remove(rows.slots, slot)
        newest = max(newest, rows.exposed_times[head & ring])
        head += 1
    rows.counters[HEAD] = head
    rows.counters[COUNT] -= head - first
    return head - first, newest


@kernel
def restore(
    rows: Rows,
    rules: Rules,
    keys: NDArray[np.uint64],
    users: NDArray[np.uint64],
    times: NDArray[np.int64],
    clicked: NDArray[np.bool_],
) -> None:
    """Restore exposures and clicks of an earlier process, in the order of its examples; a click marks its exposure."""
    ring = len(rows.exposed_keys) - 1
    for i in range(len(keys)):
        hashed = _hashed(keys[i], rules.salt)
        reference, slot = _find(rows.slots, rows.keys, rows.exposed_keys, keys[i], hashed)
        if clicked[i]:
            if reference >= EXPOSED:
                rows.exposed_clicked[(reference - EXPOSED) & ring] = True
        elif reference < 0:
            number = rows.counters[TAIL]
            at = number & ring
            rows.exposed_keys[at], rows.exposed_times[at], rows.exposed_clicked[at] = keys[i], times[i], False
            rows.exposed_users[at] = np.uint32(_hashed(users[i], rules.salt))
            rows.slots[slot] = hashed << _32 | np.uint64(EXPOSED + (number & (EXPOSED - 1)) + 1)
            rows.counters[TAIL] = number + 1
            rows.counters[COUNT] += 1


@kernel
def times_due(rows: Rows, rules: Rules, lead: int) -> NDArray[np.int64]:
    """The watermarks at which pending rows are due, (pending,): displayed ones ``lead`` before their display time."""
    due = np.empty(int(rows.live.sum()), np.int64)
    count = 0
    for row in range(len(rows.states)):
        state = rows.states[row]
        if state != FREE:
            due[count] = rows.times[row] + (rules.display_horizon if state == SERVED else -lead)
            count += 1
    return due[:count].copy()


@kernel
def gather(
    rows: NDArray[np.int64],
    requests: NDArray[np.uint16],
    request_columns: NDArray[Any],
    ad_columns: NDArray[Any],
    to: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Write what belongs to the request and to the ad of each row side by side: ``out[to[i]]``, (., R + A)."""
    width = request_columns.shape[1]
    for i in range(len(rows)):
        target = out[to[i]]
        for column in range(width):
            target[column] = request_columns[requests[i], column]
        for column in range(ad_columns.shape[1]):
            target[width + column] = ad_columns[rows[i], column]
