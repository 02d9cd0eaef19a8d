"""The calibration core of a partition: what is counted, what is published, restarts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.config import CalibratorConfig
from calibration.delay_prior import CONVERSION_PRIOR
from calibration.head import CONVERSION_PACE, HeadCalibration, HeadRows
from calibration.merged import map_of
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.calibrate.calibrator import PartitionCalibrator
from stream.records.examples import ExampleRows, concat
from stream.records.wire import CalibrationRecord
from tests.calibration.known_truth import conversions
from tests.stream.pipeline import SPEC, START_MS, example_rows

PLAN = SPEC.slice_plan
FORGETS = CalibratorConfig(half_life_clicks=16, gate_half_life_clicks=8)


def calibrator(config: CalibratorConfig = FORGETS, interval_s: float = 1.0) -> PartitionCalibrator:
    """Of partition 3."""
    return PartitionCalibrator(3, config, interval_s, plan=PLAN)


def published(one: PartitionCalibrator) -> CalibrationRecord:
    """The state now."""
    record = one.take_publication(at_once=True)
    assert record is not None
    return record


def test_counts_exposures_and_clicks_as_they_were_served() -> None:
    """The state is that of a head told the logits, p, times and paths of the rows."""
    rows = example_rows(200, seed=1, kind=np.repeat([EXPOSURE, CLICK], 100).astype(np.uint8))
    one = calibrator()
    one.step(rows, 0, START_MS + 90_000)
    expected = HeadCalibration(PLAN, FORGETS)
    paths = PLAN.paths(rows.ids, rows.dense)
    shown, clicked = slice(0, 100), slice(100, 200)
    expected.expose(HeadRows(rows.ts_ms[shown], paths[shown], rows.logit[shown], rows.p[shown]))
    expected.happen(
        HeadRows(rows.ts_ms[clicked], paths[clicked], rows.logit[clicked], rows.p[clicked]), rows.delay_ms[clicked]
    )
    expected.advance(START_MS + 90_000)
    assert published(one).state == expected.to_bytes()
    assert one.rows == 200


def test_conversions_are_no_clicks_and_bad_rows_are_rejected() -> None:
    """A conversion says nothing about clicks; a logit or p that is not finite has no bin."""
    kind = np.array([EXPOSURE, CONVERSION, EXPOSURE, CLICK], np.uint8)
    rows = example_rows(
        4,
        seed=1,
        kind=kind,
        logit=np.array([0.5, np.nan, np.nan, 0.5], np.float32),
        p=np.array([0.6, 0.6, 0.6, np.inf], np.float32),
    )
    one = calibrator()
    one.step(rows, 0, START_MS)
    assert (one.rows, one.rejected_rows, published(one).rows) == (1, 2, 1)


def test_a_p_that_is_no_probability_leaves_the_state_readable() -> None:
    """It is left out, for clicks and for conversions: the state would be refused by all who read it."""
    twice = np.array([2.0, 0.5], np.float32)
    rows = example_rows(2, seed=1, kind=np.array([CLICK, EXPOSURE], np.uint8), p=twice, conversion_p=-twice)
    one = calibrator()
    one.step(rows, 0, START_MS)
    record = published(one)
    assert (one.rows, one.rejected_rows) == (1, 1)
    PartitionCalibrator(0, FORGETS, 1.0, record, plan=PLAN)


def test_clicks_of_displays_before_the_first_one_counted_are_left_out() -> None:
    """A calibrator that begins in the midst of a log has no exposures of theirs: they would read as O/E above 1."""
    early, late = example_rows(50, seed=1, kind=np.full(50, CLICK, np.uint8)), example_rows(50, seed=2)
    early = early.with_event(CLICK, ts_ms=early.ts_ms - 3_600_000)
    one, other = calibrator(), calibrator()
    one.step(early, 0, START_MS)
    for each in (one, other):
        each.step(late, 1, START_MS + 60_000)
    one.step(early, 2, START_MS + 60_000)
    assert one.clicks.evidence.table.to_bytes() == other.clicks.evidence.table.to_bytes()
    assert one.clicks.instruments.table.to_bytes() == other.clicks.instruments.table.to_bytes()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 19))
def test_restarted_from_its_record_it_goes_on_bit_equal(cut: int) -> None:
    """The record of the topic is enough: the state, decayed and with maps on trial, is that of one never stopped."""
    records = [example_rows(60, seed=at) for at in range(20)]
    records = [replace(rows, ts_ms=rows.ts_ms + 30_000 * at) for at, rows in enumerate(records)]
    whole, first = calibrator(), calibrator()
    for offset, rows in enumerate(records):
        whole.step(rows, offset, START_MS + 30_000 * offset)
        if offset < cut:
            first.step(rows, offset, START_MS + 30_000 * offset)
    assert whole.clicks.gains.starts().size, "no candidate was judged"
    second = PartitionCalibrator(3, FORGETS, 1.0, published(first), plan=PLAN)
    for offset, rows in enumerate(records):  # delivered from the start: what it holds is skipped
        second.step(rows, offset, START_MS + 30_000 * offset)
    one, other = published(whole), published(second)
    assert (other.state, other.rows, other.next_offset) == (one.state, one.rows, one.next_offset)
    assert other.version == one.version + 1


def test_rows_of_another_line_are_no_evidence_for_the_map() -> None:
    """From the first row of a new line on its map starts again; delays and instruments go on with all rows."""
    records = [example_rows(200, seed=at, model_version=np.full(200, 5)) for at in range(2)]
    version = np.where(np.arange(200) % 2, 7, 12).astype(np.int64)
    kind = np.where(np.arange(200) % 5 == 3, CLICK, EXPOSURE).astype(np.uint8)  # the earliest is an exposure
    mixed = example_rows(200, seed=2, model_version=version, kind=kind)
    mixed = replace(mixed, ts_ms=mixed.ts_ms + 60_000)
    one, every = calibrator(), calibrator()
    one.newest_line = 10
    for offset, rows in enumerate([*records, mixed]):
        for each in (one, every):
            each.step(rows, offset, START_MS + 61_000 * (1 + offset))
        assert one.line == (10 if offset == 2 else 0)
    new = calibrator()
    new.step(mixed.take(mixed.model_version >= 10), 2, START_MS + 183_000)
    counted, wanted = (each.clicks.evidence.table.sums().sum(axis=0).tolist() for each in (one, new))
    assert counted == wanted
    assert one.clicks.instruments.table.to_bytes() == every.clicks.instruments.table.to_bytes()
    assert one.clicks.law.events == every.clicks.law.events
    record = published(one)
    again = PartitionCalibrator(3, FORGETS, 1.0, record, plan=PLAN)
    assert (record.line, again.line) == (10, 10)


def test_publishes_by_event_time_and_only_then() -> None:
    """One record an interval of the watermark; without new rows the version stays."""
    one = calibrator(interval_s=10.0)
    one.step(example_rows(5, seed=1), 0, START_MS)
    first = one.take_publication()
    assert first is not None
    assert (first.version, first.rows, first.next_offset, first.watermark_ms) == (1, 5, 1, START_MS)
    one.step(example_rows(0, seed=1), 1, START_MS + 9_999)
    assert one.take_publication() is None
    one.step(example_rows(0, seed=1), 2, START_MS + 10_000)
    second = one.take_publication()
    assert second is not None
    assert (second.version, second.next_offset) == (1, 3)


def test_an_interval_of_nothing_is_refused() -> None:
    """The message names the value and the variable."""
    with pytest.raises(ValueError, match=r"publish_interval_s=0 .*MILLSTREAM_PUBLISH_INTERVAL_S"):
        PartitionCalibrator(0, FORGETS, 0)


def converting(count: int = 400, *, twice: bool = False) -> tuple[ExampleRows, ExampleRows]:
    """Clicks, and the conversions of the first half of them, an hour after their click."""
    clicks = example_rows(count, seed=7, kind=np.full(count, CLICK, np.uint8))
    half = clicks.take(slice(0, count // 2))
    hour = np.full(len(half), 3_600_000)
    first = half.with_event(CONVERSION, known_ms=half.known_ms + hour, delay_ms=hour)
    again = half.with_event(CONVERSION, known_ms=half.known_ms + 2 * hour, delay_ms=2 * hour)
    return clicks, concat([first, again]) if twice else first


def test_conversions_are_the_events_of_clicks_at_the_clicks_time() -> None:
    """The second state is that of a head whose exposures are clicks, with what its own head served."""
    clicks, converted = converting()
    one = calibrator()
    one.step(clicks, 0, START_MS + 90_000)
    one.step(converted, 1, START_MS + 3_700_000)
    expected = HeadCalibration(PLAN, FORGETS.of_conversions(), CONVERSION_PRIOR, CONVERSION_PACE)
    paths = PLAN.paths(clicks.ids, clicks.dense)
    of = HeadRows(clicks.known_ms, paths, clicks.conversion_logit, clicks.conversion_p)
    half = slice(0, len(converted))
    expected.expose(of)
    expected.advance(START_MS + 90_000)
    expected.happen(of.take(half), converted.delay_ms)
    expected.advance(START_MS + 3_700_000)
    assert published(one).conversion_state == expected.to_bytes()


def test_a_clicks_further_conversions_do_not_count() -> None:
    """What is told is P(at least one): with two each, a click would convert more often than it can."""
    once, twice = calibrator(), calibrator()
    for one, (clicks, converted) in ((once, converting()), (twice, converting(twice=True))):
        one.step(clicks, 0, START_MS + 90_000)
        one.step(converted, 1, START_MS + 8_000_000)
    assert published(twice).conversion_state == published(once).conversion_state


def test_after_a_restart_further_conversions_still_do_not_count() -> None:
    """The record holds which clicks have converted."""
    clicks, converted = converting()
    through = calibrator()
    through.step(clicks, 0, START_MS + 90_000)
    through.step(converted, 1, START_MS + 3_700_000)
    record = published(through)
    again = PartitionCalibrator(3, FORGETS, 1.0, record, plan=PLAN)
    for one in (through, again):
        one.step(converted, 2, START_MS + 3_800_000)
    assert published(again) == published(through)


def test_a_model_without_a_conversion_head_leaves_no_state_of_one() -> None:
    """Its clicks were not told a probability of conversion."""
    clicks, _ = converting()
    nothing = np.full(len(clicks), np.nan, np.float32)
    one = calibrator()
    one.step(clicks.with_event(CLICK, conversion_logit=nothing, conversion_p=nothing), 0, START_MS + 90_000)
    assert published(one).conversion_state == b""
    assert one.rejected_rows == 0


def test_conversions_that_take_hours_are_expected_by_their_age() -> None:
    """At a true rate of 10 % and delays of two hours at the median, early O/E is right long before they have come."""
    head, early = conversions()
    assert set(early) == {6, 12, 18, 24, 30}
    assert all(abs(early[hour] - 1) < 0.1 for hour in (12, 18, 24, 30)), early
    assert len(head.trials) <= 10
    assert len(head.to_bytes()) < 150_000
    assert map_of([head]).is_identity  # the model says the truth


def test_the_map_of_conversions_proves_itself_within_hours() -> None:
    """Log-odds twice too far apart are drawn together to half."""
    head, _ = conversions(stretch=2.0)
    low, high = map_of([head]).log_odds_of(np.array([-3.3, -1.3], np.float32))
    assert 0.4 < (high - low) / 2 < 0.6
