"""The session fold against a slow one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.session_state import COUNTER, USER, merged
from stream.session_memory import MemorySessionStore
from stream.sessions import SessionFold, Told
from tests.learners.small_spec import SMALL
from tests.stream.session_events import (
    START_MS,
    Event,
    OutcomeRows,
    SlowFold,
    assert_counters_equal,
    events,
    told_by,
)


def folded(batches: list[list[Event]]) -> MemorySessionStore:
    """A store after the batches, each with its displays first."""
    store, fold = MemorySessionStore(SMALL), SessionFold(SMALL)
    for batch in batches:
        store.step(fold, *told_by(batch))
    return store


def cut(draw: st.DrawFn, rows: list[Event]) -> list[list[Event]]:
    """The events in batches of random sizes."""
    marks = sorted(draw(st.sets(st.integers(0, len(rows)), max_size=6)))
    return [rows[a:b] for a, b in zip([0, *marks], [*marks, len(rows)], strict=True)]


@st.composite
def batches(draw: st.DrawFn) -> list[list[Event]]:
    """Random events in random batches."""
    return cut(draw, draw(events()))


@settings(max_examples=200, deadline=None)
@given(batches())
def test_batches_fold_as_single_events_do(cuts: list[list[Event]]) -> None:
    """Gaps, sessions, outcomes, totals, decay, expiry and missing keys, whatever the cut into batches."""
    slow = SlowFold()
    for batch in cuts:
        for event in sorted(batch, key=lambda event: event.kind is not None):  # displays first
            slow.fold(event)
    states = folded(cuts).export().states
    assert states.keys.users.tolist() == sorted(slow.users)
    assert states.keys.counters.tolist() == sorted(slow.counters)
    np.testing.assert_array_equal(states.users, slow.user_states(states.keys.users))
    assert_counters_equal(states.counters, slow.counter_states(states.keys.counters))


@settings(max_examples=100, deadline=None)
@given(st.data(), batches())
def test_records_folded_at_once_are_those_folded_one_by_one(data: st.DataObject, records: list[list[Event]]) -> None:
    """One load and one fold of many records leave the bytes of a step for each, wherever the steps are cut."""
    fold = SessionFold(SMALL)
    store = MemorySessionStore(SMALL)
    marks = sorted(data.draw(st.sets(st.integers(0, len(records)))))
    for first, last in zip([0, *marks], [*marks, len(records)], strict=True):
        told = [told_by(record) for record in records[first:last]]
        states = fold.fold(store.load(0, fold.keys(told)), told)
        store.apply(0, store.fence(0), store.fence(0) + 1, states)
    assert store.sha256() == folded(records).sha256()


@settings(max_examples=100, deadline=None)
@given(batches())
def test_outcomes_leave_the_same_bytes_however_they_are_cut(cuts: list[list[Event]]) -> None:
    """Also the rounding of decayed sums does not tell where a record ended."""
    outcomes = [[event for event in batch if event.kind is not None] for batch in cuts]
    assert folded(outcomes).sha256() == folded([[event for batch in outcomes for event in batch]]).sha256()


@settings(max_examples=60, deadline=None)
@given(batches())
def test_owners_are_the_users_of_their_own_counters(cuts: list[list[Event]]) -> None:
    """A counter whose key holds the user belongs to the user, all others to nobody."""
    keys = folded(cuts).export().states.keys
    owner_of = {
        event.ids()[column]: event.user if SMALL.own(counter) else 0
        for batch in cuts
        for event in batch
        for counter, column in zip(SMALL.counters, SMALL.counter_columns, strict=True)
    }
    assert keys.owners.tolist() == [owner_of[key] for key in keys.counters.tolist()]


@settings(max_examples=60, deadline=None)
@given(events(jumps=False))
def test_shared_counters_of_partitions_add_up_to_those_of_one_worker(rows: list[Event]) -> None:
    """Each partition folds its own users; the sums are what one worker would count."""
    one = folded([rows]).export().states
    shared = one.keys.counters[one.keys.owners == 0]
    parts = np.zeros((3, len(shared)), COUNTER)
    for partition in range(3):
        store = folded([[event for event in rows if event.user % 3 == partition]])
        states = store.export().states
        slots = {key: at for at, key in enumerate(states.keys.counters.tolist())}
        for at, key in enumerate(shared.tolist()):
            if key in slots:
                parts[partition, at] = states.counters[slots[key]]
    assert_counters_equal(merged(parts, SMALL.rates.half_life_s * 1000), one.counters[one.keys.owners == 0])


def test_folding_leaves_the_loaded_states_alone() -> None:
    """A refused batch can be folded again from what was loaded."""
    fold = SessionFold(SMALL)
    told = [told_by([Event(None, 1, 1, 1, 0, START_MS, 0), Event(SETTLED, 1, 1, 1, 1, START_MS, START_MS)])]
    states = MemorySessionStore(SMALL).load(0, fold.keys(told))
    fold.fold(states, told)
    assert states.users.tobytes() == bytes(states.users.nbytes)
    assert states.counters.tobytes() == bytes(states.counters.nbytes)


def test_an_empty_batch_touches_nothing() -> None:
    """A heartbeat has no rows."""
    keys = SessionFold(SMALL).keys([Told(None, OutcomeRows([])), Told(None, None)])
    assert (len(keys.users), len(keys.counters), len(keys.owners)) == (0, 0, 0)


def test_a_correction_turns_the_remembered_outcome() -> None:
    """A click after its settlement counts once: one impression, one click, the outcome bit set."""
    rows = [
        Event(SETTLED, 1, 2, 1, 0, START_MS, START_MS + 60_000),
        Event(SETTLED, 1, 3, 1, 0, START_MS, START_MS + 60_000),
        Event(CORRECTION, 1, 2, 1, 1, START_MS, START_MS + 90_000),
        Event(CONVERSION, 1, 2, 1, 1, START_MS, START_MS + 95_000),
    ]
    states = folded([rows]).export().states
    user = states.users[0]
    assert (user["outcomes"], user["outcome_count"], user["click_ms"]) == (0b10, 2, START_MS)
    counter = states.counters[states.keys.counters.tolist().index(rows[0].ids()[SMALL.ad_field])]
    assert (counter["n"], counter["clicks"], counter["values"]) == (1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(events(), events())
def test_a_batch_behind_the_fence_changes_nothing(first: list[Event], second: list[Event]) -> None:
    """A replayed batch is refused with the fence that stands, and the state stays."""
    store, fold = MemorySessionStore(SMALL), SessionFold(SMALL)
    store.step(fold, *told_by(first))
    digest, stands = store.sha256(), store.fence(0)
    states = store.load(0, fold.keys([told_by(second)]))
    changed = fold.fold(states, [told_by(second)])
    assert store.apply(0, 77, 78, changed) == stands
    assert (store.sha256(), store.fence(0)) == (digest, stands)


@pytest.mark.parametrize("states", [USER, COUNTER])
def test_states_have_no_padding(states: np.dtype[np.void]) -> None:
    """Digests and stored bytes are of content alone."""
    assert states.itemsize == sum(np.dtype(states[name]).itemsize for name in states.names or ())
