"""Kernels of the embedding table: its index, admission, start values and updates.

**Index.** Open addressing with linear probing, kept in the order of the hashes (Amble and Knuth 1974): a slot is
``hash << 32 | row``, 0 is empty, a search ends at the first larger hash. The home of a hash h in [0, 2^32) is
h · capacity >> 32, which keeps that order, so the index is one sorted list with gaps, and to grow it is to spread it.

**Growth** is spread too. While it lasts, hashes from ``FRONTIER`` on live at the new capacity and those below at the
old one; every insertion moves some more slots, from the end of the list backwards, and no key is ever moved at once
with all others.

Kernels called for every key take arrays, not ``Store``: to count the references to eight of them at each call takes
longer than the work itself.

**Head** of a row: its key, and ``last seen epoch << 32 | column << 16 | flags``. Free rows are chained through the key.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel, prefetch
from learners.table.arrays import (
    CHANGED,
    FREE,
    FRONTIER,
    HELD,
    IN_BATCH,
    LIVE,
    NEW,
    NO_COLUMN,
    NOTED,
    OLD,
    SIGHTED,
    SIGHTED_BEFORE,
    TURN,
    USED,
    Rules,
    Store,
)

Integer: TypeAlias = int | np.signedinteger

HASHES = 1 << 32
_SKETCH_CELLS_PER_KEY = 4
_LOW = np.uint64(0xFFFFFFFF)
_ONE, _SIXTEEN, _THIRTY_TWO, _THIRTY_THREE = np.uint64(1), np.uint64(16), np.uint64(32), np.uint64(33)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)  # MurmurHash3 fmix64
_SPLITMIX64_STEP = np.uint64(0x9E3779B97F4A7C15)
_SKETCH_SALT = np.uint64(0xD6E8FEB86659FD93)
_COLUMN = np.uint64(0xFFFF)
_KEYS_IN_FLIGHT = 128
_GROW_AT_LOAD = 0.80  # at the end of a growth the part not yet moved is at 0.85
_GROWTH_DIVISOR = 8  # by an eighth: 10 to 11.25 bytes a key, the most just as a growth begins
_MOVES_PER_INSERT = 16


@kernel
def mixed(key: np.uint64) -> np.uint64:
    """Every bit of the result depends on every bit of the key; a bijection."""
    key ^= key >> _THIRTY_THREE
    key *= _MIX_1
    key ^= key >> _THIRTY_THREE
    key *= _MIX_2
    return key ^ (key >> _THIRTY_THREE)


@kernel
def _home(counters: NDArray[np.int64], hashed: Integer) -> Integer:
    home: Integer = (hashed * (counters[NEW] if hashed >= counters[FRONTIER] else counters[OLD])) >> 32
    return home


@kernel
def _locate(
    slots: NDArray[np.uint64], heads: NDArray[np.uint64], counters: NDArray[np.int64], key: np.uint64
) -> tuple[Integer, Integer]:
    """The row of a key, or 0, and the slot where it is or belongs."""
    hashed = mixed(key) >> _THIRTY_TWO
    at, bound = _home(counters, np.int64(hashed)), hashed << _THIRTY_TWO
    while slots[at] - _ONE < bound:  # an empty slot wraps round to the largest number
        at += 1
    while slots[at] != 0 and slots[at] >> _THIRTY_TWO == hashed:
        row = np.int64(slots[at] & _LOW)
        if heads[row, 0] == key:
            return row, at
        at += 1
    return 0, at


@kernel
def _put(slots: NDArray[np.uint64], at: Integer, slot: np.uint64) -> None:
    """Insert a slot where it belongs; the rest of its run moves on by one."""
    while slots[at] != 0:
        slots[at], slot = slot, slots[at]
        at += 1
    slots[at] = slot


@kernel
def _take_out(slots: NDArray[np.uint64], counters: NDArray[np.int64], at: Integer) -> None:
    """Empty a slot; those behind it that are not at home move back by one."""
    while slots[at + 1] != 0 and _home(counters, np.int64(slots[at + 1] >> _THIRTY_TWO)) <= at:
        slots[at] = slots[at + 1]
        at += 1
    slots[at] = 0


@kernel
def _spread(slots: NDArray[np.uint64], counters: NDArray[np.int64]) -> None:
    """Growth owed for one inserted key: start it when the index is full enough, move some slots while it lasts."""
    if counters[FRONTIER] == 0:
        if counters[HELD] <= counters[NEW] * _GROW_AT_LOAD:
            return
        counters[OLD] = counters[NEW]
        counters[NEW] += max(16, counters[OLD] // _GROWTH_DIVISOR)
        counters[FRONTIER] = HASHES
    if counters[HELD] % _KEYS_IN_FLIGHT == 0 or counters[NEW] < HASHES >> 20:
        _move(slots, counters, _MOVES_PER_INSERT * _KEYS_IN_FLIGHT)


@kernel
def _move(slots: NDArray[np.uint64], counters: NDArray[np.int64], count: int) -> None:
    """Move the frontier back over about ``count`` slots, to the start of a run."""
    stop = (counters[FRONTIER] * counters[OLD]) >> 32
    start = max(0, stop - count)
    while start > 0 and slots[start - 1] != 0:
        start -= 1
    # The smallest hash whose old home is ``start``: nothing below it can be at ``start`` or behind.
    counters[FRONTIER] = (start * HASHES + counters[OLD] - 1) // counters[OLD]
    while slots[stop] != 0:
        stop += 1
    lifted = slots[start:stop].copy()
    slots[start:stop] = 0
    for slot in lifted:
        if slot != 0:
            at = _home(counters, np.int64(slot >> _THIRTY_TWO))
            while slots[at] != 0 and slots[at] < slot:
                at += 1
            _put(slots, at, slot)


@kernel
def _new_row(heads: NDArray[np.uint64], counters: NDArray[np.int64], saved: NDArray[np.uint8]) -> Integer:
    """A free row, or the next one never used."""
    row: Integer = counters[FREE]
    if row:
        counters[FREE] = np.int64(heads[row, 0])
    else:
        row = counters[USED]
        counters[USED] += 1
    if row < len(saved) and not saved[row]:
        saved[row] = 2  # a running snapshot began when this row was free: it must not copy what comes now
    counters[HELD] += 1
    return row


@kernel
def _note(heads: NDArray[np.uint64], noted: NDArray[np.int32], counters: NDArray[np.int64], row: Integer) -> None:
    """Mark a row as changed."""
    if not heads[row, 1] & CHANGED:
        heads[row, 1] |= CHANGED
        if counters[NOTED] < len(noted):
            noted[counters[NOTED]] = row
        counters[NOTED] += 1  # beyond the list: take_changed looks at every row instead


@kernel
def note(store: Store, rows: NDArray[np.int32]) -> None:
    """Mark rows (n,) as changed."""
    for row in rows:
        _note(store.heads, store.noted, store.counters, row)


@kernel
def start_row(
    numbers: NDArray[np.float32], row: Integer, key: np.uint64, seed: int, scale: float, base: Integer
) -> None:
    """Normal start values, a pure function of seed and key; with a base row, around that row's values.

    The sum of four uniform 16-bit numbers (Irwin-Hall), of variance 1 after scaling: normal enough for a start value,
    within ±3.5 standard deviations, and, unlike logarithms and cosines, the same bits on every machine.
    """
    dim = numbers.shape[1] - 3
    state = mixed(key ^ (np.uint64(seed) * _SPLITMIX64_STEP))
    unit = np.float32(scale * np.sqrt(3.0) / 65536.0)
    for d in range(dim):
        state += _SPLITMIX64_STEP
        bits = mixed(state)
        total = np.int64(bits & _COLUMN) + np.int64((bits >> _SIXTEEN) & _COLUMN)
        total += np.int64((bits >> _THIRTY_TWO) & _COLUMN) + np.int64(bits >> np.uint64(48))
        numbers[row, d] = np.float32(total - 131070) * unit
    for d in range(dim, dim + 3):
        numbers[row, d] = 0
    if base:
        for d in range(dim + 1):
            numbers[row, d] += numbers[base, d]


@kernel
def _sighted(sketch: NDArray[np.uint8], counters: NDArray[np.int64], rotate_after: int, key: np.uint64) -> Integer:
    """Count a sighting of a key; the sightings known of it, this one included, never too few within a generation."""
    if counters[SIGHTED] >= rotate_after:
        counters[TURN] = 1 - counters[TURN]
        counters[SIGHTED_BEFORE], counters[SIGHTED] = counters[SIGHTED], 0
        sketch[counters[TURN]] = 0
    counters[SIGHTED] += 1
    now, before = counters[TURN], 1 - counters[TURN]
    mask = np.uint64(sketch.shape[1] - 1)
    first = mixed(key ^ _SKETCH_SALT)
    step = (first >> _THIRTY_TWO) | _ONE
    fewest, known = np.int64(255), np.int64(255)
    cell = first
    for _ in range(_SKETCH_CELLS_PER_KEY):
        at = np.int64(cell & mask)
        fewest = min(fewest, np.int64(sketch[now, at]))
        known = min(known, np.int64(sketch[now, at]) + np.int64(sketch[before, at]))
        cell += step
    cell = first
    for _ in range(_SKETCH_CELLS_PER_KEY):  # conservative update: no cell rises above what its key can have
        at = np.int64(cell & mask)
        sketch[now, at] = max(np.int64(sketch[now, at]), min(fewest + 1, np.int64(255)))
        cell += step
    counted: Integer = min(known + 1, np.int64(255))
    return counted


@kernel
def _insert(
    slots: NDArray[np.uint64],
    heads: NDArray[np.uint64],
    numbers: NDArray[np.float32],
    counters: NDArray[np.int64],
    saved: NDArray[np.uint8],
    rules: Rules,
    key: np.uint64,
    column: Integer,
) -> Integer:
    """A new row for a key that has none, with its start values."""
    _, at = _locate(slots, heads, counters, key)
    row = _new_row(heads, counters, saved)
    heads[row, 0] = key
    heads[row, 1] = LIVE | (np.uint64(column) << _SIXTEEN)
    _put(slots, at, (mixed(key) & ~_LOW) | np.uint64(row))
    base = 1 + column if rules.from_default and column != NO_COLUMN else 0
    start_row(numbers, row, key, rules.seed, rules.scale, base)
    _spread(slots, counters)
    return row


@kernel
def _candidates(
    slots: NDArray[np.uint64],
    heads: NDArray[np.uint64],
    counters: NDArray[np.int64],
    keys: NDArray[np.uint64],
    bounds: NDArray[np.uint64],
    rows: NDArray[np.int64],
) -> None:
    """For each key the first row with its hash, or 0; the memory of a whole block is asked for before any is used."""
    old, new, frontier = counters[OLD], counters[NEW], counters[FRONTIER]
    for i in range(len(keys)):  # apart from the rest, so that it is vectorised
        bounds[i] = mixed(keys[i]) & ~_LOW
    for i in range(len(keys)):
        hashed = np.int64(bounds[i] >> _THIRTY_TWO)
        rows[i] = (hashed * (new if hashed >= frontier else old)) >> 32
        prefetch(slots, rows[i])
        prefetch(slots, rows[i] + 7)
    for i in range(len(keys)):
        at, bound, below = rows[i], bounds[i], 8
        while below == 8:  # counting eight at a time has no branch to mispredict; what is below comes first
            below = 0
            for j in range(8):
                below += slots[at + j] - _ONE < bound  # an empty slot wraps round to the largest number
            at += below
        rows[i] = np.int64(slots[at] & _LOW) if (slots[at] ^ bound) <= _LOW else 0
        prefetch(heads, 2 * rows[i])


@kernel
def find(store: Store, keys: NDArray[np.uint64], horizon: int, rows: NDArray[np.int32]) -> None:
    """Keys (B, E) → rows (B, E): a key's row, its column's default row where it has none, 0 for key 0."""
    slots, heads, counters, columns = store.slots, store.heads, store.counters, keys.shape[1]
    flat, out = keys.reshape(-1), rows.reshape(-1)
    oldest, column = np.uint64(horizon), 0
    bounds, block = np.empty(_KEYS_IN_FLIGHT, np.uint64), np.empty(_KEYS_IN_FLIGHT, np.int64)
    for start in range(0, len(flat), _KEYS_IN_FLIGHT):
        part = flat[start : start + _KEYS_IN_FLIGHT]
        _candidates(slots, heads, counters, part, bounds, block)
        for i in range(len(part)):
            key, row = part[i], block[i]
            column += 1
            if key == 0:
                row = 0
            else:
                if row and (heads[row, 0] != key or not heads[row, 1] & LIVE):
                    row, _ = _locate(slots, heads, counters, key)
                if row == 0 or heads[row, 1] >> _THIRTY_TWO < oldest:
                    row = column
            out[start + i] = row
            if column == columns:
                column = 0


@kernel
def admit(
    store: Store,
    rules: Rules,
    keys: NDArray[np.uint64],
    unique: NDArray[np.int32],
    before: NDArray[np.uint64],
    inverse: NDArray[np.int32],
) -> Integer:
    """Count sightings, admit keys, and list the rows of a batch; see ``EmbeddingTable.admit``.

    While it runs, a row met has ``IN_BATCH`` set and its index in ``unique`` where its last seen epoch was;
    ``before`` keeps that. ``stamp`` undoes it.
    """
    slots, heads, counters, columns = store.slots, store.heads, store.counters, keys.shape[1]
    numbers, saved, sketch, noted, admitted = store.numbers, store.saved, store.sketch, store.noted, store.admitted
    flat, out = keys.reshape(-1), inverse.reshape(-1)
    bounds, block, count = np.empty(_KEYS_IN_FLIGHT, np.uint64), np.empty(_KEYS_IN_FLIGHT, np.int64), 0
    for start in range(0, len(flat), _KEYS_IN_FLIGHT):
        part = flat[start : start + _KEYS_IN_FLIGHT]
        _candidates(slots, heads, counters, part, bounds, block)
        for i in range(len(part)):
            key, row = part[i], block[i]
            if key == 0:
                out[start + i] = -1
                continue
            if row == 0 or heads[row, 0] != key or not heads[row, 1] & LIVE:
                row, _ = _locate(slots, heads, counters, key)
                if row == 0:
                    column = (start + i) % columns
                    row = 1 + column  # the default one, until the key has been sighted enough and there is room
                    sightings: Integer = 1
                    if rules.admit_after > 1:
                        sightings = _sighted(sketch, counters, rules.rotate_after, key)
                    if sightings >= rules.admit_after and counters[HELD] - rules.columns < rules.max_rows:
                        row = _insert(slots, heads, numbers, counters, saved, rules, key, column)
                        _note(heads, noted, counters, row)
                        admitted[column] += 1
            head = heads[row, 1]
            if head & IN_BATCH:
                out[start + i] = np.int64(head >> _THIRTY_TWO)
            else:
                unique[count], before[count], out[start + i] = row, head, count
                heads[row, 1] = (np.uint64(count) << _THIRTY_TWO) | (head & _LOW) | IN_BATCH
                count += 1
    return count


@kernel
def assign(store: Store, rules: Rules, keys: NDArray[np.uint64], epoch: int, rows: NDArray[np.int32]) -> None:
    """The rows of keys (n,), made where there is none, seen now."""
    slots, heads, numbers, counters, saved = store.slots, store.heads, store.numbers, store.counters, store.saved
    for i in range(len(keys)):
        row, _ = _locate(slots, heads, counters, keys[i])
        if row == 0:
            row = _insert(slots, heads, numbers, counters, saved, rules, keys[i], NO_COLUMN)
        rows[i] = row
        if row > rules.columns:
            heads[row, 1] = (heads[row, 1] & _LOW) | (np.uint64(epoch) << _THIRTY_TWO)


@kernel
def rows_of(store: Store, keys: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
    """Keys (n,) → rows (n,), 0 where there is none."""
    for i in range(len(keys)):
        rows[i], _ = _locate(store.slots, store.heads, store.counters, keys[i])


@kernel
def remove(store: Store, rows: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
    """Take rows out and count them by column."""
    for row in rows:
        head = store.heads[row]
        _, at = _locate(store.slots, store.heads, store.counters, head[0])
        _take_out(store.slots, store.counters, at)
        column = np.int64((head[1] >> _SIXTEEN) & _COLUMN)
        if column < len(counts):
            counts[column] += 1
        head[0], head[1] = np.uint64(store.counters[FREE]), 0
        store.counters[FREE] = row
        store.counters[HELD] -= 1


@kernel
def mixed_all(keys: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    """The hash of each key."""
    for i in range(len(keys)):
        out[i] = mixed(keys[i])


@kernel
def update(
    store: Store,
    rows: NDArray[np.int32],
    gradients: NDArray[np.float32],
    vector_rate: np.float32,
    weight_rate: np.float32,
    vector_beta: np.float32,
    weight_beta: np.float32,
) -> None:
    """Row-wise Adagrad; see ``EmbeddingTable.update``. Row 0 learns nothing."""
    numbers, heads, noted, counters = store.numbers, store.heads, store.noted, store.counters
    width, dim, share = numbers.shape[1], numbers.shape[1] - 3, np.float32(1 / (numbers.shape[1] - 3))
    for i in range(len(rows)):
        if i + 8 < len(rows):
            ahead = np.int64(rows[i + 8])
            prefetch(numbers, ahead * width)
            prefetch(numbers, ahead * width + width - 1)
            prefetch(heads, 2 * ahead)
        row = np.int64(rows[i])
        if row == 0:
            continue
        even, odd, bias = np.float32(0), np.float32(0), gradients[i, dim]
        for d in range(0, dim - 1, 2):  # two sums: half as long a chain of additions
            even += gradients[i, d] * gradients[i, d]
            odd += gradients[i, d + 1] * gradients[i, d + 1]
        if dim & 1:
            even += gradients[i, dim - 1] * gradients[i, dim - 1]
        square = numbers[row, dim + 1] + (even + odd) * share
        bias_square = numbers[row, dim + 2] + bias * bias
        numbers[row, dim + 1], numbers[row, dim + 2] = square, bias_square
        step = vector_rate / np.sqrt(vector_beta + square)
        for d in range(dim):
            numbers[row, d] -= step * gradients[i, d]
        numbers[row, dim] -= weight_rate / np.sqrt(weight_beta + bias_square) * bias
        _note(heads, noted, counters, row)


@kernel
def build_index(store: Store) -> None:
    """Fill an empty index with all live rows, at its final capacity."""
    for row in range(1, store.counters[USED]):
        if store.heads[row, 1] & LIVE:
            key = store.heads[row, 0]
            _, at = _locate(store.slots, store.heads, store.counters, key)
            _put(store.slots, at, (mixed(key) & ~_LOW) | np.uint64(row))
