"""The join core, a rule at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from tests.stream.join_harness import CONFIG, EMPTY, T0, Joined, as_examples, events, rebuilt, served, short
from tests.stream.oracle import Example


@pytest.fixture
def join() -> Joined:
    """A fresh core of partition 0, stepped in memory."""
    return Joined()


def exposure(key: int, display_s: float) -> Example:
    """The exposure of an impression."""
    display_ms = int(T0 + display_s * 1000)
    return Example(EXPOSURE, key, display_ms, display_ms, 0, 0.0, 0)


def click(key: int, display_s: float, click_s: float, produced_ms: int = 0) -> Example:
    """The click of an impression."""
    display_ms, click_ms = int(T0 + display_s * 1000), int(T0 + click_s * 1000)
    return Example(CLICK, key, display_ms, click_ms, click_ms - display_ms, 0.0, produced_ms)


def conversion(key: int, display_s: float, click_s: float, at_s: float, value: float) -> Example:
    """A conversion of a click."""
    display_ms, at_ms = int(T0 + display_s * 1000), int(T0 + at_s * 1000)
    return Example(CONVERSION, key, display_ms, at_ms, max(0, int((at_s - click_s) * 1000)), value, 0)


def test_a_display_teaches_at_once(join: Joined) -> None:
    """As soon as served row and impression met and every input has come so far; once, whatever is repeated."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 1)), 0)
    out = join.advance(1)
    assert as_examples(out.examples) == [exposure(7, 1)]
    assert out.counts["exposures"] == 1
    join.served(served((7, 0)), 1)
    join.impressions(events((7, 1), (7, 2)), 1)
    out = join.advance(1000)
    assert out.examples is None
    assert (out.counts["duplicate_served"], out.counts["duplicate_impressions"]) == (1, 2)


def test_a_click_brings_its_display_along(join: Joined) -> None:
    """It waits for no other input; it knows its delay, and when the broker received it."""
    join.served(served((7, 0), (8, 0)), 0)
    join.impressions(events((7, 1), (8, 100)), 0)
    join.clicks(events((7, 4)), 0, produced_ms=99)
    out = join.poll()
    assert as_examples(out.examples) == [exposure(7, 1), click(7, 1, 4, 99)]
    assert (out.counts["exposures"], out.counts["clicks"]) == (1, 1)


@pytest.mark.parametrize("order", ["sic", "sci", "isc", "ics", "csi", "cis"])
def test_inputs_may_come_in_any_order(join: Joined, order: str) -> None:
    """Served row, display and click join whichever comes first; the click's time is the time of knowledge."""
    feed = {
        "s": lambda: join.served(served((7, 0)), 0),
        "i": lambda: join.impressions(events((7, 1)), 0),
        "c": lambda: join.clicks(events((7, 4)), 0),
    }
    for which in order:
        feed[which]()
    assert as_examples(join.poll().examples) == [exposure(7, 1), click(7, 1, 4)]


def test_a_click_before_its_display_is_known_with_it(join: Joined) -> None:
    """Clocks differ: nothing of an impression is known before its display."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 1)), 0)
    join.clicks(events((7, 0.5)), 0)
    assert as_examples(join.poll().examples) == [exposure(7, 1), click(7, 1, 1)]


# ------------------------------------------------------------------------------------------------- clicks that lag


def test_clicks_that_lag_hold_exposures_back(join: Joined) -> None:
    """Exposures go out up to the lead ahead of the newest click; the rest waits, in memory and in its offsets."""
    times = (1, 12.9, 13, 13.1, 50)
    join.served(served(*((key, at) for key, at in enumerate(times, 1))), 0)
    join.impressions(events(*((key, at) for key, at in enumerate(times, 1))), 0)
    assert join.poll().examples is None
    join.clicks(events((99, 10)), 0)
    out = join.poll()
    assert short(out.examples) == [(EXPOSURE, 1), (EXPOSURE, 2), (EXPOSURE, 3)]
    assert (join.core.pending_rows, join.core.waiting_displays) == (2, 2)
    assert out.offsets == {SERVED: 0, IMPRESSIONS: 0, CLICKS: 0}
    join.clicks(events((99, 11)), 1)
    assert short(join.poll().examples) == [(EXPOSURE, 4)]
    join.clicks(events((99, 60)), 2)
    assert short(join.poll().examples) == [(EXPOSURE, 5)]


def test_a_promise_of_the_clicks_lets_exposures_out(join: Joined) -> None:
    """Where nobody clicks, the producer's word is enough: an event may come at its time, and less the lateness."""
    join.served(served((7, 0), (8, 0), watermark_s=100), 0)
    join.impressions(events((7, 5), (8, 6), watermark_s=100), 0)
    join.clicks(events(watermark_s=-3), 0)
    assert short(join.poll().examples) == [(EXPOSURE, 7)]
    join.clicks(events(watermark_s=-2), 1)
    assert short(join.poll().examples) == [(EXPOSURE, 8)]


def test_exposures_wait_until_every_input_has_spoken(join: Joined) -> None:
    """Without a click nothing says that clicks come at all."""
    join.served(served((7, 0), (8, 1000)), 0)
    join.impressions(events((7, 1), (9, 1000)), 0)
    assert join.poll().examples is None
    join.core.watermark(CLICKS, T0)
    assert short(join.poll().examples) == [(EXPOSURE, 7)]


def test_an_idle_input_holds_nothing_back(join: Joined) -> None:
    """Only by the wall clock, and only until it speaks again; when all are idle the furthest one counts."""
    join.served(served((7, 0), (8, 40)), 0)
    join.impressions(events((7, 1)), 0)
    out = join.poll(T0 + 100_000)
    assert (out.watermark_ms, out.examples) == (0, None)
    join.served(served((9, 41)), 1)
    join.impressions(events((9, 41)), 1)
    assert join.poll(T0 + 101_900).watermark_ms == 0
    out = join.poll(T0 + 102_000)  # no click ever came
    assert out.watermark_ms == T0 + 36_000
    assert short(out.examples) == [(EXPOSURE, 7), (EXPOSURE, 9)]
    join.clicks(events((9, 42)), 0)
    join.served(served((10, 60)), 2)
    join.impressions(events((10, 61)), 2)
    assert short(join.poll(T0 + 103_000).examples) == [(CLICK, 9)]
    assert short(join.poll(T0 + 108_000).examples) == [(EXPOSURE, 10)]


def test_inputs_far_ahead_of_the_slowest_are_named(join: Joined) -> None:
    """By more than was asked for; the slowest never is, nor anything while another input has not spoken."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 90), (8, 90), (9, 90)), 0)
    join.poll(T0 + 95_000)
    assert (join.core.ahead(60_000), join.core.ahead()) == (frozenset(), frozenset([SERVED, IMPRESSIONS]))
    join.clicks(events((1, 0)), 0)
    join.poll(T0 + 95_000)
    assert join.core.ahead(60_000) == frozenset([IMPRESSIONS])
    assert join.core.ahead(95_000) == frozenset()
    join.poll(T0 + 200_000)
    assert join.core.ahead(60_000) == frozenset(), "all are idle"


@pytest.mark.parametrize("shown", [[(7, 3600), (7, 1), (8, 1)], [(7, 3600)]])
def test_an_event_of_a_wrong_clock_does_not_stop_its_input(join: Joined, shown: list[tuple[int, float]]) -> None:
    """Amid others, or alone: nothing is ahead of the wall clock."""
    join.served(served((7, 0)), 0)
    join.clicks(events((7, 0)), 0)
    join.impressions(events(*shown), 0)
    join.poll(T0 + 2000)
    assert join.core.ahead(60_000) == frozenset()


# ---------------------------------------------------------------------------------------------------------- horizons


def test_a_click_counts_whenever_it_comes_up_to_its_horizon(join: Joined) -> None:
    """At the very end, long after its display was stored; then it is late; its payload is the event as it was sent."""
    join.served(served((7, 0), (8, 0)), 0)
    join.impressions(events((7, 1), (8, 1)), 0)
    assert short(join.advance(20).examples) == [(EXPOSURE, 7), (EXPOSURE, 8)]
    join.clicks(events((7, 31), (8, 31.001)), 3, produced_ms=5)
    out = join.poll()
    assert as_examples(out.examples) == [click(7, 1, 31, 5)]
    (reject,) = out.rejects
    assert (reject.topic, reject.offset, reject.reason) == (CLICKS, 3, "late")
    assert reject.detail == "clicked 30001 ms after it was displayed"
    assert reject.payload == b'{"impression_id":"8","ts_ms":1650000031001,"user_key":"9"}'
    join.clicks(events((7, 31), (7, 3)), 4)
    out = join.poll()
    assert (out.examples, out.counts["duplicate_clicks"]) == (None, 2)


def test_late_clicks_find_their_exposures_among_many_records(join: Joined) -> None:
    """In the order in which they came, each with the columns of its own display; a record may hold clicks, too."""
    for at in range(5):
        keys = range(1 + 10 * at, 11 + 10 * at)
        join.served(served(*((key, at) for key in keys)), at)
        join.impressions(events(*((key, at) for key in keys)), at)
        join.clicks(events((keys[5], at)), at)
        join.advance(at)
    clicked = (33, 2, 41, 31, 12, 50, 1)
    join.clicks(events(*((key, 9) for key in clicked)), 9)
    assert as_examples(join.poll().examples) == [click(key, (key - 1) // 10, 9) for key in clicked]


def test_row_never_displayed_yields_nothing(join: Joined) -> None:
    """It is dropped behind the display horizon and no longer holds the offset back."""
    join.served(served((7, 0)), 0)
    join.served(served((8, 1)), 1)
    assert join.poll().offsets == {SERVED: 0}
    out = join.advance(7.5)
    assert out.examples is None
    assert out.counts["undisplayed"] == 2
    assert join.core.pending_rows == 0
    join.impressions(events((7, 6.5)), 0)
    join.clicks(events((7, 6.6)), 0)
    rejects = join.advance(20).rejects
    assert [reject.reason for reject in rejects] == ["undisplayed"] * 2
    assert "dropped as undisplayed" in rejects[0].detail


def test_display_beyond_its_horizon_is_late(join: Joined) -> None:
    """While the row is still known the reason says so."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 6.001)), 0)
    (reject,) = join.poll().rejects
    assert (reject.reason, reject.detail) == ("late", "displayed 6001 ms after it was served")


def test_event_without_a_served_row_is_rejected_once_the_horizon_passed(join: Joined) -> None:
    """An unknown impression and its click wait as long as a served row may still come, and hold their offsets."""
    join.impressions(events((7, 1)), 0)
    join.clicks(events((7, 2)), 0)
    out = join.advance(7)
    assert not out.rejects
    assert out.offsets == {IMPRESSIONS: 0, CLICKS: 0}
    out = join.advance(8.001)
    assert [(r.topic, r.reason) for r in out.rejects] == [
        (IMPRESSIONS, "unknown_impression"),
        (CLICKS, "unknown_impression"),
    ]
    assert join.core.waiting_events == 0


def test_event_times_move_the_watermark_less_the_allowed_lateness(join: Joined) -> None:
    """The slowest of served, impressions and clicks decides; conversions do not take part."""
    join.served(served((7, 0), (8, 50)), 0)
    join.impressions(events((7, 1), (8, 51)), 0)
    join.conversions(events((7, 1000)), 0)
    assert join.poll().watermark_ms == 0
    join.clicks(events((8, 12)), 0)
    assert join.poll().watermark_ms == T0 + 7000
    join.clicks(events((9, 30)), 1)
    assert join.poll().watermark_ms == T0 + 25_000


# ------------------------------------------------------------------------------------------------------- conversions


def test_conversion_waits_for_its_click(join: Joined) -> None:
    """It joins when the click is stored, with its delay since the click and its value."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 1)), 0)
    join.conversions(events((7, 9, 2.5)), 0)
    assert join.poll().examples is None
    join.clicks(events((7, 4)), 0)
    assert as_examples(join.poll().examples) == [exposure(7, 1), click(7, 1, 4), conversion(7, 1, 4, 9, 2.5)]


def test_every_distinct_conversion_of_a_click_counts(join: Joined) -> None:
    """In one step and in later ones, before and after a restart; an equal event changes nothing, whatever its value."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 1)), 0)
    join.clicks(events((7, 4)), 0)
    join.conversions(events((7, 9, 2.5), (7, 8, 1.0), (7, 9, 3.0), (7, 3, 4.0)), 0)
    out = join.poll()
    expected = [conversion(7, 1, 4, at, value) for at, value in ((9, 2.5), (8, 1.0), (3, 4.0))]
    assert as_examples(out.examples) == [exposure(7, 1), click(7, 1, 4), *expected]
    assert (out.counts["conversions"], out.counts["duplicate_conversions"]) == (3, 1)
    again = rebuilt(join, out)
    again.conversions(events((7, 9, 2.5), (7, 3, 4.0), (7, 10, 5.0)), 1)
    out = again.poll()
    assert as_examples(out.examples) == [conversion(7, 1, 4, 10, 5.0)]
    assert out.counts["duplicate_conversions"] == 2


def test_conversion_without_a_click_is_rejected(join: Joined) -> None:
    """A displayed row whose click never came cannot convert."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 1)), 0)
    join.conversions(events((7, 9, 2.5)), 0)
    (reject,) = join.advance(20).rejects
    assert (reject.reason, b'"value":2.5' in reject.payload) == ("no_click", True)


def test_conversion_counts_up_to_its_horizon() -> None:
    """From the click on, and no longer."""
    for at_s, reasons in ((44, []), (44.001, ["late"])):
        join = Joined(replace(CONFIG, conversion_horizon_s=40))
        join.served(served((7, 0)), 0)
        join.impressions(events((7, 1)), 0)
        join.clicks(events((7, 4)), 0)
        join.advance(44)
        join.conversions(events((7, at_s, 1.0)), 0)
        assert [reject.reason for reject in join.poll().rejects] == reasons


# --------------------------------------------------------------------------------------------------- offsets, restarts


def test_the_oldest_unfinished_record_is_committed(join: Joined) -> None:
    """An exposed row frees its records, a pending one holds its own; so does the one that moved the watermark."""
    join.served(served((1, 0)), 10)
    join.served(served((2, 1)), 11)
    join.served(served((3, 0)), 12)
    join.impressions(events((2, 1)), 20)
    join.impressions(events((1, 1)), 21)
    assert join.poll().offsets == {SERVED: 10, IMPRESSIONS: 20}
    join.clicks(events((1, 2)), 30)
    out = join.poll()
    assert short(out.examples) == [(EXPOSURE, 1), (EXPOSURE, 2), (CLICK, 1)]
    assert out.offsets == {SERVED: 11, IMPRESSIONS: 20, CLICKS: 30}, "the records that moved watermarks last"
    join.served(served(watermark_s=3), 13)
    assert join.poll().offsets[SERVED] == 12, "row 3 was not displayed"
    join.impressions(events((3, 2)), 22)
    assert short(join.poll().examples) == [(EXPOSURE, 3)]
    assert join.poll().offsets == {SERVED: 13, IMPRESSIONS: 22, CLICKS: 30}


def test_rebuild_knows_how_far_the_inputs_had_come(join: Joined) -> None:
    """Even a promise after which nothing follows is read again: without it the rest would never be exposed."""
    log: dict[str, list[Any]] = {
        SERVED: [served((1, 0), (2, 8)), served(watermark_s=20)],
        IMPRESSIONS: [events((1, 1), (2, 9)), events(watermark_s=20)],
        CLICKS: [events((1, 2)), events(watermark_s=18)],
    }
    committed = dict.fromkeys(log, 0)
    for life in (join, Joined()):
        for topic, feed in ((SERVED, life.served), (IMPRESSIONS, life.impressions), (CLICKS, life.clicks)):
            for offset in range(committed[topic], len(log[topic])):
                feed(log[topic][offset], offset)
        out = life.poll()
        assert out.watermark_ms == T0 + 18_000
        committed = out.offsets
    assert committed == {SERVED: 1, IMPRESSIONS: 1, CLICKS: 1}


def test_redelivered_record_is_skipped(join: Joined) -> None:
    """An offset that was seen before is counted and otherwise ignored."""
    join.served(served((7, 0)), 4)
    join.served(served((8, 0)), 4)
    join.served(served((8, 0)), 3)
    assert join.poll().counts == {"rows_served": 1, "redelivered_records": 2}


def test_rebuilt_core_joins_clicks_and_conversions_of_earlier_exposures(join: Joined) -> None:
    """They find their rows in the examples topic and the store; what was joined before changes nothing."""
    join.served(served((7, 0), (8, 0)), 0)
    join.impressions(events((7, 1), (8, 1)), 0)
    join.clicks(events((8, 3)), 0)
    out = join.advance(12)
    again = rebuilt(join, out)
    again.clicks(events((7, 14), (8, 3)), 1)
    again.conversions(events((8, 20, 3.0), (7, 21, 4.0)), 0)
    found = again.poll()
    assert short(found.examples) == [(CLICK, 7), (CONVERSION, 8), (CONVERSION, 7)]
    assert found.watermark_ms == out.watermark_ms


def test_an_exposure_that_a_late_click_needs_may_be_gone_from_the_log(join: Joined) -> None:
    """Retention can outrun the click horizon: the click is rejected with the offset that is missing."""
    join.served(served((7, 0)), 0)
    join.impressions(events((7, 1)), 0)
    join.advance(12)
    join.join.examples.clear()
    join.clicks(events((7, 14)), 5)
    out = join.poll()
    assert out.examples is None
    assert [(one.reason, one.offset) for one in out.rejects] == [("late", 5)]
    assert "no longer holds" in out.rejects[0].detail
    assert "clicks" not in out.counts


def test_examples_handed_over_too_late_are_refused(join: Joined) -> None:
    """What was read before could have been emitted twice."""
    join.served(served((7, 0)), 0)
    with pytest.raises(ValueError, match="Call start_at"):
        join.core.restore(EMPTY, 0)


# ------------------------------------------------------------------------------------------------------------- memory


def test_at_the_bound_exposed_rows_beyond_the_display_horizon_are_forgotten_first(join: Joined) -> None:
    """Their clicks are never joined; a repeated display of them is late, whatever it waits for."""
    join.served(served((1, 0), (2, 0), (3, 12), (4, 30)), 0)
    join.impressions(events((1, 1), (2, 2), (3, 13)), 0)
    join.advance(14)
    join.core.shed_memory(1)
    out = join.advance(20)
    assert out.counts["forgotten_rows"] == 1
    assert "early_rows" not in out.counts
    assert out.resume.forgotten_ms == T0 + 1000
    join.clicks(events((1, 16), (2, 16)), 1)
    join.served(served((1, 0)), 1)
    join.impressions(events((1, 1), (1, 5)), 1)
    out = join.poll()
    assert short(out.examples) == [(CLICK, 2)]
    assert [(reject.topic, reject.reason) for reject in out.rejects] == [(IMPRESSIONS, "late")] * 2
    assert "no longer known" in out.rejects[0].detail
    assert [reject.reason for reject in join.advance(100).rejects] == ["undisplayed"]


def test_rows_within_the_display_horizon_are_never_forgotten(join: Joined) -> None:
    """An exposed row must still tell a repeated display from a first one: nothing is exposed twice."""
    join.served(served((1, 0), (2, 0)), 0)
    join.impressions(events((1, 1)), 0)
    join.advance(6)
    join.core.shed_memory(1)
    join.served(served((1, 0)), 1)
    join.impressions(events((1, 1)), 1)
    out = join.poll()
    assert "forgotten_rows" not in out.counts
    assert (out.examples, out.counts["duplicate_impressions"]) == (None, 1)


def test_when_that_is_not_enough_the_gate_opens_early(join: Joined) -> None:
    """Displayed rows go out before the clicks have come so far, oldest first; a click that comes then still counts."""
    join.served(served(*((key, key) for key in range(1, 41))), 0)
    join.impressions(events(*((key, key + 1) for key in range(1, 41))), 0)
    assert join.poll().examples is None
    join.core.shed_memory(1 << 40)
    out = join.poll()
    assert short(out.examples) == [(EXPOSURE, key) for key in (1, 2, 3)]
    assert out.counts["early_rows"] == 3
    join.clicks(events((1, 4), (5, 9)), 0)
    assert short(join.poll().examples) == [*((EXPOSURE, key) for key in range(4, 12)), (CLICK, 5), (CLICK, 1)]
    assert len(short(join.advance(100).examples)) == 29


def test_and_served_rows_are_dropped_early(join: Joined) -> None:
    """Where most of what is served is never displayed it is these rows that take the memory."""
    join.served(served(*((key, 0.1 * key) for key in range(1, 33))), 0)
    join.core.shed_memory(1 << 40)
    out = join.poll()
    assert (out.counts["early_rows"], out.counts["undisplayed"]) == (3, 3)
    assert join.core.pending_rows == 29


def test_memory_follows_the_rows(join: Joined) -> None:
    """What a burst took is given back once its rows are exposed and forgotten."""
    before, bursts = join.core.bytes, []
    for burst in range(4):
        at = burst * 1000
        keys = range(1 + burst * 20_000, 1 + (burst + 1) * 20_000)
        join.served(served(*((key, at) for key in keys)), burst)
        join.impressions(events(*((key, at + 1) for key in keys)), burst)
        full = join.core.bytes
        join.advance(at + 20)
        join.advance(at + 50)
        join.core.shed_memory(0)
        bursts.append(full)
    assert max(bursts[1:]) <= 1.05 * bursts[1]
    assert join.core.exposed_rows == 0
    assert join.core.bytes < before + 0.3 * full


@pytest.mark.parametrize(
    "wrong",
    [{"click_window_s": 0}, {"click_horizon_s": 0}, {"allowed_lateness_s": -1}, {"display_lead_s": -1},
     {"join_memory_bytes": 1}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    """The error names the setting to change."""
    (name,) = wrong
    with pytest.raises(ValueError, match=f"MILLSTREAM_{name.upper()}"):
        replace(CONFIG, **wrong)
