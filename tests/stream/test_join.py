"""The join core against an oracle that sees the whole log at once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from stream.examples import Displays, ExampleRows
from stream.inputs import EventRows, ServedRows
from stream.join import JoinCore
from stream.join_config import JoinConfig
from stream.join_memory import MemoryJoin
from stream.join_output import JoinOutput, Records, Reject, Resume
from stream.settled_clicks import MemoryClickStore
from stream.topics import CLICKS, CONVERSIONS, IMPRESSIONS, INPUTS, SERVED
from tests.stream.oracle import Example, LogEvent, Rejected, join_whole_log

T0 = 1_650_000_000_000
CONFIG = JoinConfig(
    click_window_s=10,
    display_horizon_s=6,
    late_horizon_s=30,
    conversion_horizon_s=10_000,
    allowed_lateness_s=5,
    idle_timeout_s=2,
)


EMPTY = ExampleRows.empty(2, 2)


class Joined:
    """A core stepped in memory, fed one record at a time; a record's offset is given."""

    def __init__(self, config: JoinConfig = CONFIG) -> None:
        self.core = JoinCore(config, 0)
        self.join = MemoryJoin(self.core, 2, 2)

    def served(self, rows: ServedRows, offset: int) -> None:
        """One served record."""
        self.core.served(rows, Records.one(offset, len(rows), promise_ms=rows.watermark_ms))

    def impressions(self, rows: EventRows, offset: int) -> None:
        """One record of impressions."""
        self.core.impressions(rows, Records.one(offset, len(rows), promise_ms=rows.watermark_ms))

    def clicks(self, rows: EventRows, offset: int, produced_ms: int = 0) -> None:
        """One record of clicks."""
        self.core.clicks(rows, Records.one(offset, len(rows), produced_ms, rows.watermark_ms))

    def conversions(self, rows: EventRows, offset: int) -> None:
        """One record of conversions."""
        self.core.conversions(rows, Records.one(offset, len(rows), promise_ms=rows.watermark_ms))

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """What became known."""
        return self.join.poll(now_ms)

    def advance(self, to_s: float) -> JoinOutput:
        """Promise that all inputs have come to `to_s`, and poll."""
        for topic in (SERVED, IMPRESSIONS, CLICKS):
            self.core.watermark(topic, int(T0 + to_s * 1000))
        return self.poll()


def served(*events: tuple[int, float], watermark_s: float | None = None) -> ServedRows:
    """Served rows of (impression id, seconds) whose columns tell the id."""
    key = np.array([one[0] for one in events], np.uint64)
    return ServedRows(
        impression_id=key,
        row_request=np.arange(len(events), dtype=np.uint32),
        logit=(key + np.uint64(6)).astype(np.float32),
        p=(key + np.uint64(7)).astype(np.float32),
        conversion_logit=(key + np.uint64(10)).astype(np.float32),
        conversion_p=np.full(len(events), np.nan, np.float32),
        propensity=(key + np.uint64(8)).astype(np.float32),
        ad_ids=(key + np.uint64(3))[:, None],
        ad_dense=(key + np.uint64(5)).astype(np.float32)[:, None],
        ts_ms=np.array([T0 + one[1] * 1000 for one in events], np.int64),
        user_key=key + np.uint64(1),
        model_version=(key + np.uint64(9)).astype(np.int64),
        request_ids=(key + np.uint64(2))[:, None],
        request_dense=(key + np.uint64(4)).astype(np.float32)[:, None],
        watermark_ms=_promise(watermark_s),
    )


def events(*of: tuple[int, float] | tuple[int, float, float], watermark_s: float | None = None) -> EventRows:
    """Events of (impression id, seconds[, value])."""
    keys = np.array([one[0] for one in of], np.uint64)
    return EventRows(
        impression_id=keys,
        ts_ms=np.array([T0 + one[1] * 1000 for one in of], np.int64),
        user_key=keys + np.uint64(1),
        position=np.zeros(len(of), np.int32),
        value=np.array([one[2] if len(one) > 2 else 0.0 for one in of], np.float32),
        watermark_ms=_promise(watermark_s),
    )


def _promise(watermark_s: float | None) -> int:
    return 0 if watermark_s is None else int(T0 + watermark_s * 1000)


def as_examples(rows: ExampleRows | None) -> list[Example]:
    """The rows as the oracle names them; every column that was served is checked on the way."""
    if rows is None:
        return []
    key = rows.impression_id.astype(np.int64)
    assert (rows.user_key == key + 1).all()
    assert (rows.ids == np.stack([key + 2, key + 3], axis=1)).all()
    assert (rows.dense == np.stack([key + 4, key + 5], axis=1)).all()
    assert (rows.logit == key + 6).all()
    assert (rows.p == key + 7).all()
    assert (rows.conversion_logit == key + 10).all()
    assert np.isnan(rows.conversion_p).all()
    assert (rows.propensity == key + 8).all()
    assert (rows.model_version == key + 9).all()
    columns = (rows.kind, key, rows.label, rows.ts_ms, rows.known_ms, rows.delay_ms, rows.value, rows.click_produced_ms)
    return [Example(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def short(rows: ExampleRows | None) -> list[tuple[int, int, int]]:
    """(kind, impression id, label) of each row."""
    return [(one.kind, one.impression_id, one.label) for one in as_examples(rows)]


@pytest.fixture
def core() -> Joined:
    """A fresh core of partition 0."""
    return Joined()


# ------------------------------------------------------------------------------------------------- one by one


def test_click_within_the_window_settles_at_once(core: Joined) -> None:
    """A positive waits for no watermark; it knows its delay, and when the broker received the click."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    core.clicks(events((7, 4)), 0, produced_ms=99)
    out = core.poll()
    assert as_examples(out.examples) == [Example(SETTLED, 7, 1, T0 + 1000, T0 + 4000, 3000, 0.0, 99)]
    assert out.counts["settled_clicked"] == 1


def displayed(out: JoinOutput) -> list[tuple[int, int, float]]:
    """(impression id, user key, seconds) of each display."""
    if out.displays is None:
        return []
    columns = (column.tolist() for column in out.displays)
    return [(key, user, (ts_ms - T0) / 1000) for key, user, ts_ms in zip(*columns, strict=True)]


def test_a_display_is_told_once_when_it_is_joined(core: Joined) -> None:
    """Not before its served row is there, not again when repeated, displayed, settled, nor when far too late."""
    core.served(served((1, 0), (2, 0), (3, 0)), 0)
    core.impressions(events((1, 1), (1, 1), (2, 50), (9, 1)), 0)
    assert displayed(core.poll()) == [(1, 2, 1.0)]
    core.impressions(events((1, 1), (9, 1), (9, 2), (3, 1)), 1)
    core.clicks(events((3, 2)), 0)
    assert displayed(core.poll()) == [(3, 4, 1.0)]
    core.served(served((9, 0)), 1)
    core.impressions(events((3, 1), (9, 3)), 2)
    assert displayed(core.poll()) == [(9, 10, 1.0)]
    assert core.poll().displays is None


@pytest.mark.parametrize("order", ["sic", "sci", "isc", "ics", "csi", "cis"])
def test_inputs_may_come_in_any_order(core: Joined, order: str) -> None:
    """Served row, display and click join whichever comes first; the click's time is the time of knowledge."""
    feed = {
        "s": lambda: core.served(served((7, 0)), 0),
        "i": lambda: core.impressions(events((7, 1)), 0),
        "c": lambda: core.clicks(events((7, 4)), 0),
    }
    for which in order:
        feed[which]()
    assert as_examples(core.poll().examples) == [Example(SETTLED, 7, 1, T0 + 1000, T0 + 4000, 3000, 0.0, 0)]


def test_negative_settles_when_the_watermark_passes_the_window(core: Joined) -> None:
    """At the window's very end a click may still come, one millisecond later none."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    assert core.advance(11).examples is None
    out = core.advance(11.001)
    assert as_examples(out.examples) == [Example(SETTLED, 7, 0, T0 + 1000, T0 + 11_000, -1, 0.0, 0)]
    assert out.watermark_ms == T0 + 11_001


def test_event_times_move_the_watermark_less_the_allowed_lateness(core: Joined) -> None:
    """The slowest of served, impressions and clicks decides; conversions do not take part."""
    core.served(served((7, 0), (8, 50)), 0)
    core.impressions(events((7, 1), (8, 51)), 0)
    core.conversions(events((7, 1000)), 0)
    assert core.poll().watermark_ms == 0
    core.clicks(events((8, 12)), 0)
    assert core.poll().watermark_ms == T0 + 7000
    core.clicks(events((9, 30)), 1)
    assert core.poll().watermark_ms == T0 + 25_000


def test_click_after_the_window_corrects_after_the_negative(core: Joined) -> None:
    """A click beyond the window that comes early waits for the negative that it corrects."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    core.clicks(events((7, 20)), 0, produced_ms=5)
    assert core.poll().examples is None
    assert core.poll().low_water[CLICKS] == 0
    out = core.advance(12)
    assert as_examples(out.examples) == [
        Example(SETTLED, 7, 0, T0 + 1000, T0 + 11_000, -1, 0.0, 0),
        Example(CORRECTION, 7, 1, T0 + 1000, T0 + 20_000, 19_000, 0.0, 5),
    ]


def test_click_that_comes_after_the_negative_corrects_it(core: Joined) -> None:
    """A click within the window that the watermark has overtaken corrects; it was not known before the negative."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    assert short(core.advance(12).examples) == [(SETTLED, 7, 0)]
    core.clicks(events((7, 3)), 0)
    assert as_examples(core.poll().examples) == [Example(CORRECTION, 7, 1, T0 + 1000, T0 + 11_000, 2000, 0.0, 0)]
    core.clicks(events((7, 3)), 1)
    assert core.poll().counts["duplicate_clicks"] == 1


def test_click_after_the_late_horizon_is_rejected(core: Joined) -> None:
    """Its payload is the event as a client would send it again."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    core.advance(12)
    core.clicks(events((7, 31.001)), 3)
    (reject,) = core.poll().rejects
    assert (reject.topic, reject.offset, reject.reason) == (CLICKS, 3, "late")
    assert reject.payload == b'{"impression_id":"7","ts_ms":1650000031001,"user_key":"8"}'


def test_row_never_displayed_yields_nothing(core: Joined) -> None:
    """It is dropped behind the display horizon and no longer holds the offset back."""
    core.served(served((7, 0)), 0)
    core.served(served((8, 1)), 1)
    assert core.poll().low_water == {SERVED: 0}
    out = core.advance(7.5)
    assert out.examples is None
    assert out.counts["undisplayed"] == 2
    assert core.core.pending_rows == 0
    core.impressions(events((7, 6.5)), 0)
    core.clicks(events((7, 6.6)), 0)
    assert [reject.reason for reject in core.advance(20).rejects] == ["unknown_impression"] * 2


def test_display_beyond_its_horizon_is_late(core: Joined) -> None:
    """While the row is still held the reason says so."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 6.001)), 0)
    assert [reject.reason for reject in core.poll().rejects] == ["late"]


def test_event_without_a_served_row_is_rejected_once_the_window_passed(core: Joined) -> None:
    """An unknown impression and its click wait as long as a served row may still come, and hold their offsets."""
    core.impressions(events((7, 1)), 0)
    core.clicks(events((7, 2)), 0)
    out = core.advance(11)
    assert not out.rejects
    assert out.low_water == {IMPRESSIONS: 0, CLICKS: 0}
    out = core.advance(13)
    assert [(r.topic, r.reason) for r in out.rejects] == [
        (IMPRESSIONS, "unknown_impression"),
        (CLICKS, "unknown_impression"),
    ]
    assert core.core.waiting_events == 0


def test_duplicates_change_nothing_and_are_counted(core: Joined) -> None:
    """The same served row, display, click and conversion twice yield one settled example and one conversion."""
    for offset in (0, 1):
        core.served(served((7, 0)), offset)
        core.impressions(events((7, 1), (7, 1)), offset)
        core.clicks(events((7, 2), (7, 3)), offset)
        core.conversions(events((7, 5, 2.0)), offset)
    out = core.poll()
    assert short(out.examples) == [(SETTLED, 7, 1), (CONVERSION, 7, 1)]
    duplicates = {name: n for name, n in out.counts.items() if name.startswith("duplicate")}
    assert duplicates == {
        "duplicate_served": 1,
        "duplicate_impressions": 3,
        "duplicate_clicks": 3,
        "duplicate_conversions": 1,
    }


def test_conversion_waits_for_its_click(core: Joined) -> None:
    """It joins when the click is settled, with its own delay and value."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    core.conversions(events((7, 9, 2.5)), 0)
    assert core.poll().examples is None
    core.clicks(events((7, 4)), 0)
    assert as_examples(core.poll().examples) == [
        Example(SETTLED, 7, 1, T0 + 1000, T0 + 4000, 3000, 0.0, 0),
        Example(CONVERSION, 7, 1, T0 + 1000, T0 + 9000, 8000, 2.5, 0),
    ]


def test_conversion_without_a_click_is_rejected(core: Joined) -> None:
    """A displayed row whose click never came cannot convert."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    core.conversions(events((7, 9, 2.5)), 0)
    (reject,) = core.advance(20).rejects
    assert (reject.reason, b'"value":2.5' in reject.payload) == ("no_click", True)


def test_conversion_counts_up_to_its_horizon() -> None:
    """A settled click is held for the conversion horizon and no longer."""
    for at_s, reasons in ((44, []), (44.001, ["late"])):
        core = Joined(replace(CONFIG, conversion_horizon_s=40))
        core.served(served((7, 0)), 0)
        core.impressions(events((7, 1)), 0)
        core.clicks(events((7, 4)), 0)
        core.advance(44)
        core.conversions(events((7, at_s, 1.0)), 0)
        out = core.poll()
        assert [reject.reason for reject in out.rejects] == reasons
        core.advance(44.002)
        assert core.core.pending_rows == 0


def test_low_water_is_the_oldest_unfinished_record(core: Joined) -> None:
    """A settled row frees its records, a pending one holds its own; so does the one that moved the watermark."""
    core.served(served((1, 0)), 10)
    core.served(served((2, 1)), 11)
    core.served(served((3, 0)), 12)
    core.impressions(events((2, 1)), 20)
    core.impressions(events((1, 1)), 21)
    assert core.poll().low_water == {SERVED: 10, IMPRESSIONS: 20}
    core.clicks(events((1, 2)), 30)
    assert core.poll().low_water == {SERVED: 11, IMPRESSIONS: 20, CLICKS: 30}
    core.clicks(events((2, 2)), 31)
    assert core.poll().low_water == {SERVED: 11, IMPRESSIONS: 20, CLICKS: 30}
    core.served(served(watermark_s=3), 13)
    assert core.poll().low_water[SERVED] == 12
    core.impressions(events((3, 2)), 22)
    assert short(core.advance(13).examples) == [(SETTLED, 3, 0)]
    assert core.poll().low_water == {SERVED: 13, IMPRESSIONS: 22, CLICKS: 30}


def test_rebuild_from_low_water_knows_how_far_the_inputs_had_come(core: Joined) -> None:
    """Even a promise after which nothing follows is read again: without it the rest would never settle."""
    log: dict[str, list[Any]] = {
        SERVED: [served((1, 0), (2, 8)), served(watermark_s=20)],
        IMPRESSIONS: [events((1, 1), (2, 9)), events(watermark_s=20)],
        CLICKS: [events((1, 2)), events(watermark_s=18)],
    }
    committed = dict.fromkeys(log, 0)
    for life in (core, Joined()):
        for topic, feed in ((SERVED, life.served), (IMPRESSIONS, life.impressions), (CLICKS, life.clicks)):
            for offset in range(committed[topic], len(log[topic])):
                feed(log[topic][offset], offset)
        out = life.poll()
        assert out.watermark_ms == T0 + 18_000
        committed = out.low_water
    assert committed == {SERVED: 0, IMPRESSIONS: 0, CLICKS: 1}


def test_redelivered_record_is_skipped(core: Joined) -> None:
    """An offset that was seen before is counted and otherwise ignored."""
    core.served(served((7, 0)), 4)
    core.served(served((8, 0)), 4)
    core.served(served((8, 0)), 3)
    assert core.poll().counts == {"rows_served": 1, "redelivered_records": 2}


def test_idle_input_stops_holding_the_watermark_back(core: Joined) -> None:
    """Only by the wall clock, and only until it speaks again; when all are idle the furthest one counts."""
    core.served(served((7, 0), (8, 40)), 0)
    core.impressions(events((7, 1)), 0)
    assert core.poll(1000).watermark_ms == 0
    core.served(served((9, 41)), 1)
    core.impressions(events((9, 41)), 1)
    assert core.poll(2900).watermark_ms == 0
    assert core.poll(3000).watermark_ms == T0 + 36_000  # no click ever came
    assert short(core.poll(3000).examples) == []
    core.clicks(events((9, 42)), 0)
    core.served(served((10, 60)), 2)
    assert core.poll(4000).watermark_ms == T0 + 36_000
    assert core.poll(9000).watermark_ms == T0 + 55_000


def test_at_the_bound_settled_rows_beyond_their_window_are_forgotten_first(core: Joined) -> None:
    """Their late clicks wait in vain; a repeated display of them is late, whatever it waits for."""
    core.served(served((1, 0), (2, 0), (3, 12), (4, 30)), 0)
    core.impressions(events((1, 1), (2, 2), (3, 13)), 0)
    core.clicks(events((3, 14)), 0)
    core.advance(14)
    core.core.relieve(1)
    out = core.advance(20)
    assert out.counts["forgotten_rows"] == 1
    assert "hurried_rows" not in out.counts
    assert out.resume.forgotten_ms == T0 + 1000
    core.clicks(events((1, 16), (2, 16)), 1)
    core.served(served((1, 0)), 1)
    core.impressions(events((1, 1)), 1)
    out = core.poll()
    assert short(out.examples) == [(CORRECTION, 2, 1)]
    assert [(reject.topic, reject.reason) for reject in out.rejects] == [(IMPRESSIONS, "late")]
    assert "no longer known" in out.rejects[0].detail
    assert [reject.reason for reject in core.advance(100).rejects] == ["unknown_impression"]


def test_rows_within_their_window_are_never_forgotten(core: Joined) -> None:
    """A settled click must still tell a repeated display from a first one: nothing settles twice."""
    core.served(served((1, 0), (2, 0)), 0)
    core.impressions(events((1, 1), (2, 1)), 0)
    core.clicks(events((1, 2)), 0)
    core.advance(3)
    core.core.relieve(1 << 40)
    core.served(served((1, 0)), 1)
    core.impressions(events((1, 1)), 1)
    out = core.advance(4)
    assert "forgotten_rows" not in out.counts
    assert out.counts["duplicate_impressions"] == 1


def test_when_that_is_not_enough_time_is_moved_forward(core: Joined) -> None:
    """Pending rows settle early, oldest first, as unclicked; a click that comes then corrects: nothing is lost."""
    core.served(served(*((key, key) for key in range(1, 41))), 0)
    core.impressions(events(*((key, key + 1) for key in range(1, 41))), 0)
    assert core.poll().examples is None
    core.core.relieve(1 << 40)
    out = core.poll()
    assert short(out.examples) == [(SETTLED, key, 0) for key in (1, 2, 3)]
    assert out.counts["hurried_rows"] == 3
    core.clicks(events((1, 4), (5, 9)), 0)
    assert short(core.poll().examples) == [(SETTLED, 5, 1), (CORRECTION, 1, 1)]
    assert len(short(core.advance(100).examples)) == 36


def test_memory_follows_the_rows(core: Joined) -> None:
    """What a burst took is given back once its rows are settled and forgotten."""
    before, bursts = core.core.bytes, []
    for burst in range(4):
        at = burst * 1000
        keys = range(1 + burst * 20_000, 1 + (burst + 1) * 20_000)
        core.served(served(*((key, at) for key in keys)), burst)
        core.impressions(events(*((key, at + 1) for key in keys)), burst)
        full = core.core.bytes
        core.advance(at + 20)
        core.advance(at + 50)
        core.core.relieve(0)
        bursts.append(full)
    assert max(bursts[1:]) <= 1.05 * bursts[1]
    assert core.core.settled_rows == 0
    assert core.core.bytes < before + 0.3 * full


def rebuilt(core: Joined, out: JoinOutput, config: JoinConfig = CONFIG) -> Joined:
    """Another core after a restart that finds ``out`` as the last thing stored, and all examples of ``core``."""
    other = Joined(config)
    other.core.start_at(out.low_water, out.resume)
    for offset, rows in core.join.examples.items():
        other.core.recall(rows, None, offset, out.watermark_ms)
        other.join.clicks.put(rows)
    other.join.examples = dict(core.join.examples)
    other.join._next_offset = core.join._next_offset
    return other


def test_rebuilt_core_corrects_and_converts_what_was_emitted_before(core: Joined) -> None:
    """Late clicks and conversions find their rows in the examples topic and the store, after a restart too."""
    core.served(served((7, 0), (8, 0)), 0)
    core.impressions(events((7, 1), (8, 1)), 0)
    core.clicks(events((8, 3)), 0)
    out = core.advance(12)
    again = rebuilt(core, out)
    again.clicks(events((7, 14), (8, 3)), 1)
    again.conversions(events((8, 20, 3.0), (7, 21, 4.0)), 0)
    found = again.poll()
    assert short(found.examples) == [(CORRECTION, 7, 1), (CONVERSION, 8, 1), (CONVERSION, 7, 1)]
    assert found.watermark_ms == out.watermark_ms


def test_a_row_that_a_late_click_corrects_may_be_gone_from_the_log(core: Joined) -> None:
    """Retention can outrun the late horizon: the click is rejected with the offset that is missing."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    core.advance(12)
    core.join.examples.clear()
    core.clicks(events((7, 14)), 5)
    out = core.poll()
    assert out.examples is None
    assert [(one.reason, one.offset) for one in out.rejects] == [("late", 5)]
    assert "no longer holds" in out.rejects[0].detail
    assert "corrections" not in {name for name, count in out.counts.items() if count}


def test_examples_handed_over_too_late_are_refused(core: Joined) -> None:
    """What was read before could have been emitted twice."""
    core.served(served((7, 0)), 0)
    with pytest.raises(ValueError, match="Call start_at"):
        core.core.recall(EMPTY, None, 0)


def test_a_poll_between_a_late_click_and_its_example_is_refused(core: Joined) -> None:
    """Its offset would be committed without its example."""
    core.served(served((7, 0)), 0)
    core.impressions(events((7, 1)), 0)
    core.advance(12)
    core.clicks(events((7, 14)), 0)
    with pytest.raises(ValueError, match="examples_found"):
        core.core.poll()


@pytest.mark.parametrize(
    "wrong", [{"click_window_s": 0}, {"late_horizon_s": 1}, {"allowed_lateness_s": -1}, {"join_memory_bytes": 1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    """The error names the setting to change."""
    (name,) = wrong
    with pytest.raises(ValueError, match=f"MILLSTREAM_{name.upper()}"):
        replace(CONFIG, **wrong)


# ---------------------------------------------------------------------------------------- against the oracle


@dataclass
class Log:
    """Four topics as lists of records; the offset of a record is its place."""

    served: list[ServedRows] = field(default_factory=list)
    events: dict[str, list[EventRows]] = field(default_factory=dict)

    def length(self, topic: str) -> int:
        """Records of a topic."""
        return len(self.served) if topic == SERVED else len(self.events[topic])

    def flat(self, topic: str) -> list[LogEvent]:
        """Rows of a topic in the order of their offsets."""
        if topic == SERVED:
            rows = (zip(one.impression_id.tolist(), one.served_ms.tolist(), strict=True) for one in self.served)
            return [LogEvent(key, ts_ms) for record in rows for key, ts_ms in record]
        return [
            LogEvent(*row, offset + 1)
            for offset, record in enumerate(self.events[topic])
            for row in zip(record.impression_id.tolist(), record.ts_ms.tolist(), record.value.tolist(), strict=True)
        ]

    def feed(self, core: Joined, topic: str, offset: int) -> None:
        """Give one record to the core."""
        if topic == SERVED:
            core.served(self.served[offset], offset)
        elif topic == IMPRESSIONS:
            core.impressions(self.events[topic][offset], offset)
        elif topic == CLICKS:
            core.clicks(self.events[topic][offset], offset, produced_ms=offset + 1)
        else:
            core.conversions(self.events[topic][offset], offset)


def _records(rng: random.Random, rows: list[tuple[int, float, float]], disorder_s: float) -> list[EventRows]:
    """Rows in an order whose disorder stays within `disorder_s`, cut at random; some records carry a true promise."""
    ordered = sorted(rows, key=lambda row: row[1] + rng.uniform(0, disorder_s))
    out: list[EventRows] = []
    while ordered or not out:
        size = rng.choice((1, 1, 2, 5, 0))  # the first choice is what shrinking tends to
        batch, ordered = ordered[:size], ordered[size:]
        promise = min((row[1] for row in ordered), default=None) if rng.random() < 0.2 else None
        out.append(events(*batch, watermark_s=promise))
    return out


@st.composite
def logs(draw: st.DrawFn, disorder_s: float = 5.0) -> Log:
    """Logs with every fate: never displayed, late, unknown, repeated, converted early and never clicked."""
    return random_log(draw(st.randoms(use_true_random=False)), draw(st.integers(1, 12)), disorder_s)


def random_log(rng: random.Random, most: int, disorder_s: float = 5.0) -> Log:
    """A log of ``most`` impressions."""
    rows: dict[str, list[tuple[int, float, float]]] = {topic: [] for topic in INPUTS}
    for key in range(1, most + 1):
        at = rng.randint(0, 100)
        if rng.random() < 0.9:
            rows[SERVED] += [(key, at, 0)] * rng.choice((1, 1, 1, 2))
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            rows[IMPRESSIONS] += [(key, at + rng.randint(-2, 9), 0)] * rng.choice((1, 1, 2))
        clicked = [at]
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            clicked.append(at + rng.choice((rng.randint(-2, 12), rng.randint(10, 18), rng.randint(18, 42))))
            rows[CLICKS] += [(key, clicked[-1], 0)] * rng.choice((1, 1, 2))
        for value in range(rng.choice((0, 0, 1, 2))):
            late = 11_000 if rng.random() < 0.1 else 0
            rows[CONVERSIONS].append((key, max(clicked) + rng.randint(-4, 40) + late, value + 1))
    records = {topic: _records(rng, rows[topic], disorder_s) for topic in INPUTS}
    log = Log(events={topic: records[topic] for topic in (IMPRESSIONS, CLICKS, CONVERSIONS)})
    for record in records[SERVED]:
        seconds = (record.ts_ms - T0) / 1000
        batch = served(*zip(record.impression_id.tolist(), seconds.tolist(), strict=True))
        log.served.append(replace(batch, watermark_ms=record.watermark_ms))
    return log


@dataclass
class Run:
    """What one or more lives of a core have stored, as a worker would.

    ``atomic``: examples and offsets are stored in one go, as in a transaction; else record by record, then the offsets.
    """

    log: Log
    rng: random.Random
    atomic: bool = True
    stored: list[tuple[ExampleRows, Displays | None, int]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    committed: dict[str, int] = field(default_factory=dict)
    resume: Resume = field(default_factory=Resume)
    clicks: MemoryClickStore = field(default_factory=lambda: MemoryClickStore(2, 2))
    fence: int = 0  # examples before it are in `clicks`

    def live(self, crash: float) -> bool:
        """Rebuild a core and feed it to the log's end, or until it crashes; return whether it reached the end."""
        core = Joined(CONFIG)
        core.core.start_at(self.committed, self.resume)
        for offset, (rows, displays, watermark_ms) in enumerate(self.stored):
            if offset >= self.resume.recalled_from:
                core.core.recall(rows, displays, offset, watermark_ms)
        self.catch_up()
        at = {topic: self.committed.get(topic, 0) for topic in INPUTS}
        speed = {topic: self.rng.choice((1, 3, 20)) for topic in INPUTS}
        while left := [topic for topic in INPUTS if at[topic] < self.log.length(topic)]:
            topic = self.rng.choices(left, [speed[one] for one in left])[0]
            self.log.feed(core, topic, at[topic])
            at[topic] += 1
            if self.rng.random() < 0.5 and not self.step(core.core, crash):
                return False
        if not self.step(core.core, crash):
            return False
        for topic in (SERVED, IMPRESSIONS, CLICKS):
            core.core.watermark(topic, T0 + 100_000_000)
        ended = self.step(core.core, 0)
        assert (core.core.pending_rows, core.core.settled_rows, core.core.waiting_events) == (0, 0, 0)
        return ended

    def catch_up(self) -> None:
        """Bring the store of settled clicks up to the log."""
        for rows, _, _ in self.stored[self.fence :]:
            self.clicks.put(rows)
        self.fence = len(self.stored)

    def step(self, core: JoinCore, crash: float) -> bool:
        """Everything that the worker does between two readings; False for a crash on the way."""
        while True:
            core.examples_found({at: self.stored[at][0] for at in core.wanted_examples().tolist()})
            if not self.store(core, core.poll(), crash):
                return False
            self.catch_up()
            wanted = core.wanted_clicks()
            if not (len(wanted) and core.clicks_found(self.clicks.find(wanted))):
                return True

    def store(self, core: JoinCore, out: JoinOutput, crash: float) -> bool:
        """Store the output, then commit; return False for a crash before, between or after."""
        dies_at = self.rng.randrange(3) if self.rng.random() > 1 - crash else None
        if dies_at == 0:
            return False
        reached_ms = self.stored[-1][2] if self.stored else 0
        window_ms = CONFIG.click_window_s * 1000
        settled = [one for one in as_examples(out.examples) if one.kind == SETTLED]
        assert all(one.ts_ms + window_ms >= reached_ms for one in settled), "settled behind its watermark"
        assert out.watermark_ms >= reached_ms
        self.rejects += out.rejects
        self.counts.update(out.counts)
        records = list(self.records(out, reached_ms))
        offsets = [len(self.stored) + at for at in range(len(records))]
        if dies_at == 1 and not self.atomic:
            self.stored += [record for record, _ in records[: self.rng.randint(0, len(records))]]
            return False
        self.stored += [record for record, _ in records]
        assert all(out.low_water[topic] >= offset for topic, offset in self.committed.items() if topic in out.low_water)
        self.committed |= out.low_water
        self.resume = out.resume
        if dies_at == 2:
            return False
        core.stored(offsets, [first for _, first in records])
        return True

    def records(
        self, out: JoinOutput, before_ms: int
    ) -> Iterator[tuple[tuple[ExampleRows, Displays | None, int], int]]:
        """The output cut into records, each with the row that it begins with; the last one carries the watermark."""
        rows = EMPTY if out.examples is None else out.examples
        cut = self.rng.randint(0, len(rows))
        displays = out.displays
        if 0 < cut < len(rows):
            yield (rows.take(slice(0, cut)), displays, before_ms), 0
            yield (rows.take(slice(cut, None)), None, out.watermark_ms), cut
        elif len(rows) or displays is not None:
            yield (rows, displays, out.watermark_ms), 0


def check_against_oracle(run: Run) -> None:
    """The stored examples are the oracle's, each once; so are the rejected events."""
    truth = join_whole_log(CONFIG, *(run.log.flat(topic) for topic in INPUTS))
    found = [one for rows, _, _ in run.stored for one in as_examples(rows)]
    assert sorted(found) == sorted(truth.examples)
    rejected = {_identity(reject) for reject in run.rejects}
    assert truth.rejected - truth.repeated <= rejected <= truth.rejected | truth.repeated
    displays = [key for _, shown, _ in run.stored if shown is not None for key in shown.impression_id.tolist()]
    assert sorted(displays) == sorted(one.impression_id for one in found if one.kind == SETTLED)
    labels: dict[int, int] = {}
    for one in found:  # a correction follows its negative, a conversion its click
        assert one.kind == SETTLED or labels[one.impression_id] == (one.kind == CONVERSION)
        labels[one.impression_id] = one.label


def _identity(reject: Reject) -> Rejected:
    fields: Sequence[bytes] = reject.payload.split(b'"')
    return reject.topic, int(fields[3]), int(fields[6].strip(b":,"))


@settings(max_examples=300, deadline=None)
@given(log=logs(), rng=st.randoms(use_true_random=False))
def test_any_interleaving_equals_the_oracle(log: Log, rng: random.Random) -> None:
    """Whatever the speeds, cuts, repetitions and disorder within the allowed lateness, the examples are the same."""
    run = Run(log, rng)
    assert run.live(crash=0)
    check_against_oracle(run)


@settings(max_examples=300, deadline=None)
@given(log=logs(), rng=st.randoms(use_true_random=False), atomic=st.booleans())
def test_restarts_lose_and_double_nothing(log: Log, rng: random.Random, atomic: bool) -> None:
    """Cores die before, between and after storing and committing; the union of their examples is the oracle's."""
    run = Run(log, rng, atomic)
    while not run.live(crash=0.15):
        pass
    check_against_oracle(run)


@settings(max_examples=200, deadline=None)
@given(log=logs(disorder_s=200.0), rng=st.randoms(use_true_random=False))
def test_every_event_has_one_end_however_late_it_comes(log: Log, rng: random.Random) -> None:
    """Beyond the allowed lateness outcomes hang on arrival, but each row is settled, repeated, dropped or rejected."""
    core = Joined(CONFIG)
    at = dict.fromkeys(INPUTS, 0)
    counts: Counter[str] = Counter()
    found: list[Example] = []
    while left := [topic for topic in INPUTS if at[topic] < log.length(topic)]:
        topic = rng.choice(left)
        log.feed(core, topic, at[topic])
        at[topic] += 1
        out = core.poll() if at[rng.choice(INPUTS)] % 2 or len(left) > 1 else core.advance(100_000)
        counts.update(out.counts)
        counts.update(f"rejected_{reject.topic.split('.')[1]}" for reject in out.rejects)
        found += as_examples(out.examples)
    out = core.advance(1_000_000)
    counts.update(out.counts)
    counts.update(f"rejected_{reject.topic.split('.')[1]}" for reject in out.rejects)
    found += as_examples(out.examples)
    assert (core.core.pending_rows, core.core.settled_rows, core.core.waiting_events) == (0, 0, 0)
    settled = counts["settled_clicked"] + counts["settled_unclicked"]
    assert counts["rows_served"] == settled + counts["undisplayed"] + counts["duplicate_served"]
    assert counts["rows_impressions"] == settled + counts["duplicate_impressions"] + counts["rejected_impressions"]
    joined = counts["settled_clicked"] + counts["corrections"]
    assert counts["rows_clicks"] == joined + counts["duplicate_clicks"] + counts["rejected_clicks"]
    ended = counts["converted"] + counts["duplicate_conversions"] + counts["rejected_conversions"]
    assert counts["rows_conversions"] == ended
    assert len(found) == settled + counts["corrections"] + counts["converted"]
    assert len(found) == len({(one.kind, one.impression_id) for one in found})
