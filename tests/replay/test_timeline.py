"""Ticks of event time and the queue of events that follow from displays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learners.features.encode import Request
from replay.scenario import Display
from replay.timeline import EventQueue, ticks


def request(ts_ms: int) -> Request:
    """A request at a time."""
    return Request(request_id=1, ts_ms=ts_ms, user={}, context={}, ads=[])


@given(st.lists(st.integers(0, 1_000), max_size=50).map(sorted), st.integers(1, 300))
def test_ticks_hold_every_request_once_in_order(times: list[int], tick_ms: int) -> None:
    """Ticks partition the requests; each request lies in its tick; ticks do not overlap."""
    found = list(ticks((request(t) for t in times), 0, 1_001, tick_ms))
    assert [r.ts_ms for tick in found for r in tick.requests] == times
    assert all(tick.start_ms <= r.ts_ms < tick.start_ms + tick_ms for tick in found for r in tick.requests)
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(found))


@st.composite
def displays(draw: st.DrawFn) -> Display:
    """A display with a click or not, and a conversion of the click or not."""
    at = draw(st.integers(0, 500))
    click_ms = draw(st.none() | st.integers(at, at + 200))
    conversion_ms = None if click_ms is None else draw(st.none() | st.integers(click_ms, click_ms + 400))
    return Display(0, 0, at, click_ms, conversion_ms, 1.0)


TIMES = ("display_ms", "click_ms", "conversion_ms")


@given(st.lists(displays(), max_size=30), st.lists(st.integers(0, 1_200), max_size=10).map(sorted))
def test_the_queue_pops_each_event_once_when_it_is_due(shown: list[Display], stops: list[int]) -> None:
    """Every event comes out in the first pop beyond its time, as sorting all of them says."""
    queue = EventQueue()
    for number, display in enumerate(shown, start=1):
        queue.push(number, number * 10, display)
    before = -1
    for stop in [*stops, 2_000]:
        events = queue.pop_until(stop)
        for rows, name in zip(events, TIMES, strict=True):
            times = [(getattr(display, name), number) for number, display in enumerate(shown, start=1)]
            due = sorted((at, number) for at, number in times if at is not None and before <= at < stop)
            assert list(zip(rows.ts_ms.tolist(), rows.impression_id.tolist(), strict=True)) == due
            assert np.array_equal(rows.user_key, rows.impression_id * 10)
        before = max(before, stop)
    assert len(queue) == 0
    assert queue.next_ms is None
