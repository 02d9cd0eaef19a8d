"""Kernels of the join: the index of its rows, and what an event does to the row that it names.

**Index.** Open addressing with linear probing; a slot is ``hash << 32 | reference + 1``, 0 is empty. The hash in the
slot spares a look at the row while the index is probed, moved or grown. Hashes are salted: who chooses ids cannot make
them collide. A reference is a pending row (below ``SETTLED``) or, with that bit, a settled one's number.

**Rows** go through the states ``SERVED`` → ``DISPLAYED`` → gone, and settled ones are ``UNCLICKED`` or ``CLICKED``.
Every event is applied by itself and in the order of its input, as in a loop over dicts; what happens to one impression
id never depends on another.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel, prefetch

Integer: TypeAlias = int | np.signedinteger

FREE, SERVED, DISPLAYED, HELD_CLICK = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)
"""States of a pending row; ``HELD_CLICK`` is displayed, with a click after the window that waits for the negative."""
UNCLICKED, CLICKED = np.uint8(1), np.uint8(2)
"""States of a settled row."""

DUPLICATE, WAIT, LATE, SHOWN, SETTLE, CORRECT, HOLD = range(7)
"""What becomes of an event: nothing · it waits for its row · it is too late · it displays its row · it settles it as
clicked · it corrects it · it waits for the negative that it corrects."""

COUNT, HEAD, TAIL = range(3)
"""Places in ``Rows.counters``: references in the index, number of the oldest settled row, of the next one."""

BLOCK = 4096
"""Pending rows a block; the block of a row is its place divided by this."""

SETTLED = 1 << 31
_LOW = np.uint64(0xFFFFFFFF)
_ONE, _32, _33 = np.uint64(1), np.uint64(32), np.uint64(33)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)  # MurmurHash3 fmix64
_AHEAD = 12  # keys whose index slots are on their way
NEVER = np.int64(1 << 62)


class Rows(NamedTuple):
    """The rows that a partition's join holds.

    slots : (capacity,) u64, the index, a power of two · counters : (3,) i64 ·
    keys, times, states, served, displayed : pending rows by place: impression id; served ms, then display ms; state;
    numbers of the records that served and displayed it · live, due : by block: rows in it; no row is due before, ms ·
    settled_keys, settled_times, settled_states : a ring by number, a power of two long.
    """

    slots: NDArray[np.uint64]
    counters: NDArray[np.int64]
    keys: NDArray[np.uint64]
    times: NDArray[np.int64]
    states: NDArray[np.uint8]
    served: NDArray[np.uint32]
    displayed: NDArray[np.uint32]
    live: NDArray[np.int32]
    due: NDArray[np.int64]
    settled_keys: NDArray[np.uint64]
    settled_times: NDArray[np.int64]
    settled_states: NDArray[np.uint8]


class Open(NamedTuple):
    """Unfinished rows of an input's records, counted by record: record n at n − base."""

    counts: NDArray[np.int32]
    base: int


class Rules(NamedTuple):
    """What decides, in ms; an impression displayed at ``forgotten`` or before may have been joined and forgotten."""

    window: int
    display_horizon: int
    late_horizon: int
    forgotten: int
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
    settled_keys: NDArray[np.uint64],
    key: np.uint64,
    hashed: np.uint64,
) -> tuple[Integer, Integer]:
    """The reference of a key, or −1, and the slot where it is or belongs."""
    mask = len(index) - 1
    place = np.int64(hashed) & mask
    while index[place] != 0:
        if index[place] >> _32 == hashed:
            reference = np.int64(index[place] & _LOW) - 1
            if reference < SETTLED:
                if keys[reference] == key:
                    return reference, place
            elif settled_keys[(reference - SETTLED) & (len(settled_keys) - 1)] == key:
                return reference, place
        place = (place + 1) & mask
    return -1, place


@kernel
def _remove(index: NDArray[np.uint64], place: Integer) -> None:
    """Empty a slot; those behind it that belong before it or at it move back."""
    mask = len(index) - 1
    at = place
    while True:
        at = (at + 1) & mask
        if index[at] == 0:
            break
        home = np.int64(index[at] >> _32) & mask
        if ((at - home) & mask) >= ((at - place) & mask):
            index[place] = index[at]
            place = at
    index[place] = 0


@kernel
def spread(old: NDArray[np.uint64], new: NDArray[np.uint64]) -> None:
    """Fill an empty index with the slots of a smaller one."""
    mask = len(new) - 1
    for slot in old:
        if slot != 0:
            place = np.int64(slot >> _32) & mask
            while new[place] != 0:
                place = (place + 1) & mask
            new[place] = slot


@kernel
def look_up(rows: Rows, keys: NDArray[np.uint64], salt: np.uint64) -> NDArray[np.int64]:
    """The references of keys, −1 for unknown ones, (B,)."""
    found = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        if i + _AHEAD < len(keys):
            prefetch(rows.slots, np.int64(_hashed(keys[i + _AHEAD], salt)) & (len(rows.slots) - 1))
        found[i], _ = _find(rows.slots, rows.keys, rows.settled_keys, keys[i], _hashed(keys[i], salt))
    return found


@kernel
def add_served(
    rows: Rows,
    rules: Rules,
    opened: Open,
    keys: NDArray[np.uint64],
    served_ms: NDArray[np.int64],
    records: NDArray[np.uint32],
    places: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Make the first of each unknown key a pending row at the next of ``places``; which are new, (B,)."""
    index, held, times, states, served = rows.slots, rows.keys, rows.times, rows.states, rows.served
    settled_keys, live, due, salt = rows.settled_keys, rows.live, rows.due, rules.salt
    fresh = np.empty(len(keys), np.bool_)
    used = 0
    for i in range(len(keys)):
        if i + _AHEAD < len(keys):
            prefetch(index, np.int64(_hashed(keys[i + _AHEAD], salt)) & (len(index) - 1))
        hashed = _hashed(keys[i], salt)
        reference, slot = _find(index, held, settled_keys, keys[i], hashed)
        fresh[i] = reference < 0
        if reference >= 0:
            opened.counts[np.uint32(records[i] - np.uint32(opened.base))] -= 1
            continue
        place = places[used]
        used += 1
        held[place], times[place], states[place], served[place] = keys[i], served_ms[i], SERVED, records[i]
        index[slot] = hashed << _32 | np.uint64(place + 1)
        block = place // BLOCK
        live[block] += 1
        due[block] = min(due[block], served_ms[i] + rules.display_horizon)
    rows.counters[COUNT] += used
    return fresh


@kernel
def _settle(
    index: NDArray[np.uint64],
    slot: Integer,
    settled_keys: NDArray[np.uint64],
    settled_times: NDArray[np.int64],
    settled_states: NDArray[np.uint8],
    number: Integer,
    key: np.uint64,
    display_ms: Integer,
    state: np.uint8,
) -> None:
    """Make the pending row of an index slot the settled one of that number."""
    at = number & (len(settled_keys) - 1)
    settled_keys[at], settled_times[at], settled_states[at] = key, display_ms, state
    index[slot] = (index[slot] >> _32) << _32 | np.uint64(SETTLED + (number & (SETTLED - 1)) + 1)


@kernel
def _finish(counts: NDArray[np.int32], base: Integer, record: np.uint32) -> None:
    counts[np.uint32(record - np.uint32(base))] -= 1


@kernel
def apply_impressions(
    rows: Rows,
    rules: Rules,
    served: Open,
    impressions: Open,
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    records: NDArray[np.uint32],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Display rows. What became of each event and the reference it met (−1: none), (B,) each."""
    fate, met = np.empty(len(keys), np.uint8), np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        if i + _AHEAD < len(keys):
            prefetch(rows.slots, np.int64(_hashed(keys[i + _AHEAD], rules.salt)) & (len(rows.slots) - 1))
        place, _ = _find(rows.slots, rows.keys, rows.settled_keys, keys[i], _hashed(keys[i], rules.salt))
        met[i] = place
        if times[i] <= rules.forgotten and (place < 0 or (place < SETTLED and rows.states[place] == SERVED)):
            fate[i] = LATE
        elif place < 0:
            fate[i] = WAIT
        elif place >= SETTLED or rows.states[place] != SERVED:
            fate[i] = DUPLICATE
            _finish(impressions.counts, impressions.base, records[i])
        elif times[i] > rows.times[place] + rules.display_horizon:
            fate[i] = LATE
        else:
            fate[i] = SHOWN
            rows.times[place], rows.states[place], rows.displayed[place] = times[i], DISPLAYED, records[i]
            block = place // BLOCK
            rows.due[block] = min(rows.due[block], times[i] + rules.window)
    return fate, met


@kernel
def _click_settled(rows: Rows, rules: Rules, reference: Integer, click_ms: Integer) -> int:
    at = (reference - SETTLED) & (len(rows.settled_keys) - 1)
    if rows.settled_states[at] == CLICKED:
        return DUPLICATE
    if click_ms > rows.settled_times[at] + rules.late_horizon:
        return LATE
    rows.settled_states[at] = CLICKED
    return CORRECT


@kernel
def apply_clicks(
    rows: Rows,
    rules: Rules,
    served: Open,
    impressions: Open,
    clicks: Open,
    keys: NDArray[np.uint64],
    times: NDArray[np.int64],
    records: NDArray[np.uint32],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Settle rows as clicked, correct settled ones. What became of each click and the reference it met, (B,) each."""
    fate, met = np.empty(len(keys), np.uint8), np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        if i + _AHEAD < len(keys):
            prefetch(rows.slots, np.int64(_hashed(keys[i + _AHEAD], rules.salt)) & (len(rows.slots) - 1))
        place, slot = _find(rows.slots, rows.keys, rows.settled_keys, keys[i], _hashed(keys[i], rules.salt))
        met[i] = place
        if place < 0:
            fate[i] = WAIT
        elif place >= SETTLED:
            fate[i] = _click_settled(rows, rules, place, times[i])
            if fate[i] != LATE:
                _finish(clicks.counts, clicks.base, records[i])
        elif rows.states[place] == SERVED:
            fate[i] = WAIT
        elif times[i] <= rows.times[place] + rules.window:
            fate[i] = SETTLE
            _finish(served.counts, served.base, rows.served[place])
            _finish(impressions.counts, impressions.base, rows.displayed[place])
            _finish(clicks.counts, clicks.base, records[i])
            _settle(
                rows.slots, slot, rows.settled_keys, rows.settled_times, rows.settled_states,
                rows.counters[TAIL], keys[i], rows.times[place], CLICKED,
            )  # fmt: skip
            rows.counters[TAIL] += 1
            rows.states[place] = FREE
        elif rows.states[place] == HELD_CLICK:
            fate[i] = DUPLICATE
            _finish(clicks.counts, clicks.base, records[i])
        elif times[i] > rows.times[place] + rules.late_horizon:
            fate[i] = LATE
        else:
            fate[i] = HOLD
            rows.states[place] = HELD_CLICK
    return fate, met


@kernel
def due_places(
    rows: Rows, rules: Rules, blocks: NDArray[np.int64], watermark: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Displayed rows whose window, served ones whose horizon ends before the watermark: their places.

    Looks at these blocks and notes when each is due next.
    """
    shown, hidden = np.empty(len(blocks) * BLOCK, np.int64), np.empty(len(blocks) * BLOCK, np.int64)
    shown_count, hidden_count = 0, 0
    for block in blocks:
        due = NEVER
        for place in range(block * BLOCK, (block + 1) * BLOCK):
            state = rows.states[place]
            if state == FREE:
                continue
            end = rows.times[place] + (rules.display_horizon if state == SERVED else rules.window)
            if end >= watermark:
                due = min(due, end)
            elif state == SERVED:
                hidden[hidden_count] = place
                hidden_count += 1
            else:
                shown[shown_count] = place
                shown_count += 1
        rows.due[block] = due
    return shown[:shown_count].copy(), hidden[:hidden_count].copy()


@kernel
def settle_unclicked(rows: Rows, rules: Rules, served: Open, impressions: Open, places: NDArray[np.int64]) -> None:
    """Settle displayed rows, in this order, as unclicked; their places stay taken until their columns were read."""
    index, keys, times, states = rows.slots, rows.keys, rows.times, rows.states
    settled_keys, settled_times, settled_states = rows.settled_keys, rows.settled_times, rows.settled_states
    number = rows.counters[TAIL]
    for i in range(len(places)):
        place = places[i]
        if i + _AHEAD < len(places):
            prefetch(index, np.int64(_hashed(keys[places[i + _AHEAD]], rules.salt)) & (len(index) - 1))
        key = keys[place]
        _, slot = _find(index, keys, settled_keys, key, _hashed(key, rules.salt))
        _finish(served.counts, served.base, rows.served[place])
        _finish(impressions.counts, impressions.base, rows.displayed[place])
        _settle(index, slot, settled_keys, settled_times, settled_states, number, key, times[place], UNCLICKED)
        number += 1
        states[place] = FREE
    rows.counters[TAIL] = number


@kernel
def drop_undisplayed(rows: Rows, rules: Rules, served: Open, places: NDArray[np.int64]) -> None:
    """Forget served rows that nobody saw; their places are free at once."""
    for place in places:
        key = rows.keys[place]
        _, slot = _find(rows.slots, rows.keys, rows.settled_keys, key, _hashed(key, rules.salt))
        _remove(rows.slots, slot)
        _finish(served.counts, served.base, rows.served[place])
        rows.states[place] = FREE
        rows.live[place // BLOCK] -= 1
    rows.counters[COUNT] -= len(places)


@kernel
def release(rows: Rows, places: NDArray[np.int64]) -> None:
    """Give back the places of settled rows whose columns were read."""
    for place in places:
        rows.live[place // BLOCK] -= 1


@kernel
def forget(rows: Rows, rules: Rules, before_ms: int, most: int, passing: bool) -> tuple[int, Integer]:
    """Forget settled rows, oldest first, while they were displayed before ``before_ms``, at most so many.

    Clicked rows settle before older ones that nobody clicks: ``passing`` moves those that must stay out of the way, to
    the end. Returns how many were forgotten, and the latest of their display times (−``NEVER``: none).
    """
    ring = len(rows.settled_keys) - 1
    newest = -NEVER
    head, tail = rows.counters[HEAD], rows.counters[TAIL]
    end, count = tail, 0
    while head < end and count < most:
        at = head & ring
        key, time, state = rows.settled_keys[at], rows.settled_times[at], rows.settled_states[at]
        if time >= before_ms and not (passing and state == CLICKED):
            break
        _, slot = _find(rows.slots, rows.keys, rows.settled_keys, key, _hashed(key, rules.salt))
        head += 1
        if time < before_ms:
            _remove(rows.slots, slot)
            newest = max(newest, time)
            count += 1
        else:
            rows.settled_keys[tail & ring], rows.settled_times[tail & ring] = key, time
            rows.settled_states[tail & ring] = state
            rows.slots[slot] = (rows.slots[slot] >> _32) << _32 | np.uint64(SETTLED + (tail & (SETTLED - 1)) + 1)
            tail += 1
    rows.counters[HEAD], rows.counters[TAIL] = head, tail
    rows.counters[COUNT] -= count
    return count, newest


@kernel
def recall(
    rows: Rows, rules: Rules, keys: NDArray[np.uint64], times: NDArray[np.int64], clicked: NDArray[np.bool_]
) -> None:
    """Take up rows that were settled in an earlier life, in the order of their examples; a known one's click counts."""
    for i in range(len(keys)):
        hashed = _hashed(keys[i], rules.salt)
        reference, slot = _find(rows.slots, rows.keys, rows.settled_keys, keys[i], hashed)
        if reference >= SETTLED:
            if clicked[i]:
                rows.settled_states[(reference - SETTLED) & (len(rows.settled_keys) - 1)] = CLICKED
            continue
        number = rows.counters[TAIL]
        at = number & (len(rows.settled_keys) - 1)
        rows.settled_keys[at], rows.settled_times[at] = keys[i], times[i]
        rows.settled_states[at] = CLICKED if clicked[i] else UNCLICKED
        rows.slots[slot] = hashed << _32 | np.uint64(SETTLED + (number & (SETTLED - 1)) + 1)
        rows.counters[TAIL] = number + 1
        rows.counters[COUNT] += 1


@kernel
def times_due(rows: Rows, rules: Rules) -> NDArray[np.int64]:
    """When each pending row is due, (pending,)."""
    due = np.empty(int(rows.live.sum()), np.int64)
    count = 0
    for place in range(len(rows.states)):
        state = rows.states[place]
        if state != FREE:
            due[count] = rows.times[place] + (rules.display_horizon if state == SERVED else rules.window)
            count += 1
    return due[:count].copy()


@kernel
def gather(
    rows: NDArray[np.int64],
    requests: NDArray[np.uint16],
    of_request: NDArray[Any],
    of_ad: NDArray[Any],
    to: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Write what belongs to the request and to the ad of each row side by side: ``out[to[i]]``, (., R + A)."""
    width = of_request.shape[1]
    for i in range(len(rows)):
        target = out[to[i]]
        for column in range(width):
            target[column] = of_request[requests[i], column]
        for column in range(of_ad.shape[1]):
            target[width + column] = of_ad[rows[i], column]
