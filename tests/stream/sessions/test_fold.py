"""The session fold against slow ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.session_state import COUNTER, REMEMBERED, USER, merged
from stream.records.examples import ExampleRows
from stream.sessions.fold import SessionFold
from stream.sessions.in_memory import MemorySessionStore
from tests.learners.small_spec import SMALL
from tests.stream.session_events import (
    START_MS,
    Event,
    SlowFold,
    assert_counters_equal,
    display,
    events,
    rows_of,
)


def folded(records: list[list[Event]]) -> MemorySessionStore:
    """A store after the records."""
    store, fold = MemorySessionStore(SMALL), SessionFold(SMALL)
    for record in records:
        store.step(fold, rows_of(record))
    return store


@st.composite
def records(draw: st.DrawFn) -> list[list[Event]]:
    """Random events in records of random sizes."""
    log = draw(events())
    marks = sorted(draw(st.sets(st.integers(0, len(log)), max_size=6)))
    return [log[a:b] for a, b in zip([0, *marks], [*marks, len(log)], strict=True)]


@settings(max_examples=200, deadline=None)
@given(records())
def test_records_fold_as_single_events_do(cuts: list[list[Event]]) -> None:
    """Gaps, sessions, outcomes, totals, decay, expiry and missing keys, whatever the cut into records."""
    slow = SlowFold()
    for event in (event for record in cuts for event in record):
        slow.fold(event)
    states = folded(cuts).export().states
    assert states.keys.users.tolist() == sorted(slow.users)
    assert states.keys.counters.tolist() == sorted(slow.counters)
    np.testing.assert_array_equal(states.users, slow.user_states(states.keys.users))
    assert_counters_equal(states.counters, slow.counter_states(states.keys.counters))


@settings(max_examples=100, deadline=None)
@given(st.data(), records())
def test_records_folded_at_once_are_those_folded_one_by_one(data: st.DataObject, log: list[list[Event]]) -> None:
    """One load and one fold of many records leave the bytes of a step for each, wherever the steps are cut."""
    fold = SessionFold(SMALL)
    store = MemorySessionStore(SMALL)
    marks = sorted(data.draw(st.sets(st.integers(0, len(log)))))
    for first, last in zip([0, *marks], [*marks, len(log)], strict=True):
        records = [rows_of(record) for record in log[first:last]]
        states = fold.fold(store.load(0, fold.keys(records)), records)
        store.apply(0, store.fence(0), store.fence(0) + 1, states)
    assert store.sha256() == folded(log).sha256()


@settings(max_examples=100, deadline=None)
@given(records())
def test_a_log_leaves_the_same_bytes_however_it_is_cut(cuts: list[list[Event]]) -> None:
    """Also the rounding of decayed sums does not tell where a record ended."""
    assert folded(cuts).sha256() == folded([[event for record in cuts for event in record]]).sha256()


@dataclass(frozen=True)
class Impression:
    """All that ever becomes of a display."""

    user: int
    ad: int
    display_ms: int
    click_ms: int | None
    conversion_ms: int | None


@st.composite
def impressions(draw: st.DrawFn) -> list[Impression]:
    """Some two hours in which nothing expires, with clicks up to an hour late; no two events at one time."""
    out, times = [], iter(range(0, 10**6, 7))
    for _ in range(draw(st.integers(1, 25))):
        at = START_MS + draw(st.integers(0, 3_000)) * 1000 + next(times)
        click = at + draw(st.integers(1, 600)) * 1000 + next(times) if draw(st.booleans()) else None
        converted = click is not None and draw(st.booleans())
        conversion = (click or 0) + draw(st.integers(1, 600)) * 1000 + next(times) if converted else None
        out.append(Impression(draw(st.integers(1, 2)), draw(st.integers(1, 3)), at, click, conversion))
    return out


@settings(max_examples=150, deadline=None)
@given(impressions(), st.integers(0, 4_200))
def test_states_are_what_the_impressions_with_their_clicks_say(shown: list[Impression], until_s: int) -> None:
    """At any moment: n counts displays, clicks those clicked by then; an outcome is its own display's."""
    until_ms = START_MS + until_s * 1000
    log = []
    for number, one in enumerate(shown, 1):
        for kind, at in ((EXPOSURE, one.display_ms), (CLICK, one.click_ms), (CONVERSION, one.conversion_ms)):
            if at is not None and at <= until_ms:
                log.append(Event(kind, one.user, one.ad, 1, one.display_ms, at, number))
    log.sort(key=lambda event: event.known_ms)
    states = folded([log]).export().states
    for user, state in zip(states.keys.users.tolist(), states.users, strict=True):
        newest_first = sorted(
            (one for one in shown if one.user == user and one.display_ms <= until_ms), key=lambda one: -one.display_ms
        )
        clicked = [one.click_ms is not None and one.click_ms <= until_ms for one in newest_first]
        remembered = min(len(newest_first), REMEMBERED)
        assert state["outcome_count"] == remembered
        assert [state["outcomes"] >> bit & 1 == 1 for bit in range(remembered)] == clicked[:remembered]
        in_session = 1
        while in_session < len(newest_first) and (
            newest_first[in_session - 1].display_ms - newest_first[in_session].display_ms < SMALL.session.gap_s * 1000
        ):
            in_session += 1
        assert state["session_impressions"] == in_session
        if any(clicked[:in_session]):
            assert state["session_clicks"] == sum(clicked[:in_session])
    ad_column = SMALL.field_index("ad")
    for ad in {one.ad for one in shown if one.display_ms <= until_ms}:
        key = Event(EXPOSURE, 1, ad, 1, 0, 0).ids()[ad_column]
        counter = states.counters[states.keys.counters.tolist().index(key)]
        of_ad = [one for one in shown if one.ad == ad]
        times: dict[str, list[int | None]] = {
            "n": [one.display_ms for one in of_ad],
            "clicks": [one.click_ms for one in of_ad],
            "values": [one.conversion_ms for one in of_ad],
        }
        known = {name: [at for at in of if at is not None and at <= until_ms] for name, of in times.items()}
        newest = max(at for of in known.values() for at in of)
        assert counter["ts_ms"] == newest
        for name, of in known.items():
            assert counter[name] == len(of)
            decayed = sum(0.5 ** ((newest - at) / (SMALL.rates.half_life_s * 1000)) for at in of)
            assert counter[f"recent_{name}"] == pytest.approx(decayed, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(records())
def test_owners_are_the_users_of_their_own_counters(cuts: list[list[Event]]) -> None:
    """A counter whose key holds the user belongs to the user, all others to nobody."""
    keys = folded(cuts).export().states.keys
    owner_of = {
        event.ids()[column]: event.user if SMALL.own(counter) else 0
        for record in cuts
        for event in record
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
    """A refused record can be folded again from what was loaded."""
    fold = SessionFold(SMALL)
    records = [rows_of([display(1, 1, START_MS), Event(CLICK, 1, 1, 1, START_MS, START_MS + 1)])]
    states = MemorySessionStore(SMALL).load(0, fold.keys(records))
    fold.fold(states, records)
    assert states.users.tobytes() == bytes(states.users.nbytes)
    assert states.counters.tobytes() == bytes(states.counters.nbytes)


@pytest.mark.parametrize("records", [[], [rows_of([])]], ids=["no record", "a heartbeat"])
def test_no_rows_touch_nothing(records: list[ExampleRows]) -> None:
    """A heartbeat has no rows."""
    keys = SessionFold(SMALL).keys(records)
    assert (len(keys.users), len(keys.counters), len(keys.owners)) == (0, 0, 0)


def test_a_click_turns_the_outcome_of_its_own_display() -> None:
    """Of three displays of one ad the first is clicked: one click, its own bit, though the ad was shown again."""
    rows = [display(1, 2, START_MS + at, 7 + at) for at in range(3)]
    rows += [
        Event(CLICK, 1, 2, 1, START_MS, START_MS + 9_000, 7),
        Event(CONVERSION, 1, 2, 1, START_MS, START_MS + 95_000, 7),
    ]
    states = folded([rows]).export().states
    user = states.users[0]
    assert (user["outcomes"], user["outcome_count"], user["click_ms"]) == (0b100, 3, START_MS)
    counter = states.counters[states.keys.counters.tolist().index(rows[0].ids()[SMALL.ad_field])]
    assert (counter["n"], counter["clicks"], counter["values"]) == (3, 1, 1)


def test_a_click_whose_display_is_no_longer_remembered_turns_nothing() -> None:
    """Nine displays later only the counters learn of it."""
    rows = [display(1, 2, START_MS + at, 7 + at) for at in range(REMEMBERED + 1)]
    rows.append(Event(CLICK, 1, 2, 1, START_MS, START_MS + 9_000, 7))
    states = folded([rows]).export().states
    assert states.users[0]["outcomes"] == 0
    assert states.counters["clicks"].max() == 1


@settings(max_examples=60, deadline=None)
@given(events(), events())
def test_a_record_behind_the_fence_changes_nothing(first: list[Event], second: list[Event]) -> None:
    """A replayed record is refused with the fence that stands, and the state stays."""
    store, fold = MemorySessionStore(SMALL), SessionFold(SMALL)
    store.step(fold, rows_of(first))
    digest, fence = store.sha256(), store.fence(0)
    states = store.load(0, fold.keys([rows_of(second)]))
    changed = fold.fold(states, [rows_of(second)])
    assert store.apply(0, 77, 78, changed) == fence
    assert (store.sha256(), store.fence(0)) == (digest, fence)


@pytest.mark.parametrize("states", [USER, COUNTER])
def test_states_have_no_padding(states: np.dtype[np.void]) -> None:
    """Digests and stored bytes are of content alone."""
    assert states.itemsize == sum(np.dtype(states[name]).itemsize for name in states.names or ())
