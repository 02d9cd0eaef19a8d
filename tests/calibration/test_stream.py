"""The calibrator of a stream."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.bins import BinState, LogitGrid
from calibration.isotonic import fit_map
from calibration.logistic import sigmoid
from calibration.reliability import expected_calibration_error, observed_over_expected
from calibration.stream import CalibratorConfig, StreamingCalibrator, merged_map
from tests.calibration.rows import Rows, drifting_stream, log_loss, rows

SMALL = CalibratorConfig(half_life_rows=96.0, refit_every_rows=20, grid=LogitGrid(-4.0, 4.0, 16))
GRID_LOGITS = np.linspace(-6, 6, 101)


def progressive(stream: Rows, config: CalibratorConfig | None = None, batch: int = 256) -> NDArray[np.float32]:
    """(N,) probabilities, each from the map before its row was learned."""
    calibrator = StreamingCalibrator(config)
    p = []
    for start in range(0, len(stream.logits), batch):
        part = stream.part(start, start + batch)
        p.append(calibrator.map().apply(part.logits))
        calibrator.update(*part)
    return np.concatenate(p)


@pytest.mark.parametrize("bias", [-0.2, 0.2])
def test_biased_drifting_stream_is_calibrated_as_it_runs(bias: float) -> None:
    """CTR 0.40 -> 0.48 over three days of 50,000 rows: O/E within 2 % overall, 5 % a day, log loss lower."""
    stream = drifting_stream(11, 50_000, start=-0.48, stop=-0.09, bias=bias)
    raw, p = sigmoid(stream.logits), progressive(stream)
    assert abs(observed_over_expected(stream.labels, raw) - 1) > 0.06
    assert observed_over_expected(stream.labels, p) == pytest.approx(1.0, abs=0.02)
    for day in np.array_split(np.arange(50_000), 3):
        assert observed_over_expected(stream.labels[day], p[day]) == pytest.approx(1.0, abs=0.05)
    assert log_loss(stream.labels, p) < log_loss(stream.labels, raw) - 0.002
    assert expected_calibration_error(stream.labels, p) < expected_calibration_error(stream.labels, raw) / 4


def test_model_that_stands_still_while_the_clicks_drift_is_followed() -> None:
    """Raw logits that miss the whole drift come within 4 % overall and 5 % a day."""
    moving = drifting_stream(12, 50_000, start=-0.48, stop=-0.09, bias=0.0)
    frozen = moving._replace(logits=(moving.logits - np.linspace(0, 0.39, 50_000)).astype(np.float32))
    p = progressive(frozen)
    assert observed_over_expected(frozen.labels, sigmoid(frozen.logits)) > 1.08
    assert observed_over_expected(frozen.labels, p) == pytest.approx(1.0, abs=0.04)
    for day in np.array_split(np.arange(50_000), 3):
        assert observed_over_expected(frozen.labels[day], p[day]) == pytest.approx(1.0, abs=0.055)


def test_calibrated_model_loses_next_to_nothing() -> None:
    """Over five streams of a calibrated model, the calibrator costs less than 1e-4 of log loss a row."""
    cost = []
    for seed in range(5):
        stream = drifting_stream(seed, 50_000, start=-0.48, stop=-0.09, bias=0.0)
        raw = sigmoid(stream.logits)
        cost.append(log_loss(stream.labels, progressive(stream, batch=512)) - log_loss(stream.labels, raw))
    assert np.mean(cost) < 1e-4


@settings(deadline=None, max_examples=50)
@given(rows(max_rows=120), st.lists(st.integers(0, 120), max_size=6), st.data())
def test_state_does_not_depend_on_the_cut_into_batches(batch: Rows, cuts: list[int], data: st.DataObject) -> None:
    """The same rows in one batch or in many leave the same bits, decay and corrections included."""
    late = np.array([data.draw(st.booleans()) if label else False for label in batch.labels], np.bool_)
    whole, parts = StreamingCalibrator(SMALL), StreamingCalibrator(SMALL)
    whole.update(*batch, late)
    edges = [0, *sorted(cuts), len(late)]
    for start, stop in pairwise(edges):
        parts.update(*batch.part(start, stop), late[start:stop])
    assert parts.state == whole.state
    assert parts.rows_seen == whole.rows_seen == int(np.count_nonzero(~late))


@given(rows())
def test_correction_leaves_what_a_click_in_time_had_left(batch: Rows) -> None:
    """Without decay, negatives corrected later equal clicks that came at once."""
    forever = CalibratorConfig(half_life_rows=math.inf, grid=SMALL.grid)
    late, prompt = StreamingCalibrator(forever), StreamingCalibrator(forever)
    clicked = np.ones(len(batch.logits), np.bool_)
    late.update(batch.logits, ~clicked, batch.weight)
    late.update(batch.logits, clicked, batch.weight, retract_mask=clicked)
    prompt.update(batch.logits, clicked, batch.weight)
    assert late.state == prompt.state


def test_half_life_of_rows_halves_the_weight() -> None:
    """When one half-life of rows has been seen, what came first holds half its weight."""
    config = CalibratorConfig(half_life_rows=3_200.0)
    calibrator = StreamingCalibrator(config)
    calibrator.update(np.full(50, -5.0, np.float32), np.zeros(50, np.bool_))
    calibrator.update(np.full(3_150, 5.0, np.float32), np.ones(3_150, np.bool_))
    old = calibrator.state.w[: config.grid.bins // 2].sum() / 2**20
    assert old == pytest.approx(25.0, rel=1e-4)


def test_map_starts_as_identity_and_counts_its_refits() -> None:
    """Version 0 is the identity; each refit_every_rows full makes the next version."""
    calibrator = StreamingCalibrator(SMALL)
    batch = drifting_stream(0, 19, start=0.0, stop=0.0, bias=0.0)
    assert np.array_equal(calibrator.map().log_odds_of(GRID_LOGITS), GRID_LOGITS)
    calibrator.update(*batch)
    assert calibrator.map().version == 0
    calibrator.update(*batch.part(0, 1))
    assert calibrator.map().version == 1
    assert not np.array_equal(calibrator.map().log_odds_of(GRID_LOGITS), GRID_LOGITS)


@settings(deadline=None, max_examples=30)
@given(rows(), st.integers(1, 4))
def test_merged_map_is_that_of_one_worker(batch: Rows, workers: int) -> None:
    """The map of partition states is bit-equal to the map of all rows, in either order, inputs untouched."""
    one = BinState()
    one.add(*batch)
    states = []
    for i in range(workers):
        state = BinState()
        state.add(*batch.part(i, None, workers))
        states.append(state)
    before = [state.to_bytes() for state in states]
    wanted = fit_map(one, prior_weight=100.0, version=7).to_bytes()
    assert merged_map(states, prior_weight=100.0, version=7).to_bytes() == wanted
    assert merged_map(reversed(states), prior_weight=100.0, version=7).to_bytes() == wanted
    assert [state.to_bytes() for state in states] == before


def test_no_states_merge_to_the_identity() -> None:
    """Before any partition has reported, probabilities stay raw."""
    assert np.array_equal(merged_map([]).log_odds_of(GRID_LOGITS), GRID_LOGITS)


def test_restored_calibrator_goes_on_to_the_same_bits() -> None:
    """Saved in the middle of a decay step and of a refit interval, it ends where the other ends."""
    stream = drifting_stream(5, 100, start=0.0, stop=0.5, bias=0.3)
    straight = StreamingCalibrator(SMALL)
    straight.update(*stream.part(0, 50))
    restored = StreamingCalibrator.from_bytes(straight.to_bytes(), SMALL)
    for calibrator in (straight, restored):
        for start in range(50, 100, 10):
            calibrator.update(*stream.part(start, start + 10))
    assert restored.to_bytes() == straight.to_bytes()
    assert restored.map().version > 1


def test_calibrator_resumed_from_published_sums_keeps_them_to_the_bit() -> None:
    """Sums and row count suffice to go on with the same sums; the map is fitted at once."""
    stream = drifting_stream(6, 100, start=0.0, stop=0.5, bias=0.3)
    straight = StreamingCalibrator(SMALL)
    straight.update(*stream.part(0, 50))
    resumed = StreamingCalibrator.resumed(straight.state, straight.rows_seen, SMALL)
    wanted = fit_map(straight.state, prior_weight=SMALL.prior_weight)
    assert np.array_equal(resumed.map().log_odds_of(GRID_LOGITS), wanted.log_odds_of(GRID_LOGITS))
    for calibrator in (straight, resumed):
        calibrator.update(*stream.part(50, 100))
    assert resumed.state == straight.state
    with pytest.raises(ValueError, match="cannot merge"):
        StreamingCalibrator.resumed(straight.state, 50)


def test_snapshot_of_another_grid_or_format_is_refused() -> None:
    """A snapshot whose bins mean something else raises, and so does one that is not a snapshot."""
    data = StreamingCalibrator(SMALL).to_bytes()
    with pytest.raises(ValueError, match="their bins mean different logits"):
        StreamingCalibrator.from_bytes(data)
    with pytest.raises(ValueError, match="starts with"):
        StreamingCalibrator.from_bytes(b"????" + data[4:], SMALL)
    with pytest.raises(ValueError, match=r"cut|shorter"):
        StreamingCalibrator.from_bytes(data[:-4], SMALL)


def test_bad_row_anywhere_in_a_batch_learns_nothing() -> None:
    """A NaN in the last row undoes the rows before it, decay steps included."""
    calibrator = StreamingCalibrator(SMALL)
    calibrator.update(np.zeros(5, np.float32), np.ones(5, np.bool_))
    before = calibrator.to_bytes()
    logits = np.zeros(50, np.float32)
    logits[49] = np.nan
    with pytest.raises(ValueError, match="row 49"):
        calibrator.update(logits, np.ones(50, np.bool_))
    assert calibrator.to_bytes() == before


def test_retraction_without_a_click_is_refused() -> None:
    """A correction is a late click; a mask that is not bool is refused too."""
    zeros = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="row 1 retracts a negative but has label 0"):
        StreamingCalibrator().update(zeros, np.array([True, False]), None, np.array([True, True]))
    with pytest.raises(ValueError, match="retract_mask is int64"):
        StreamingCalibrator().update(zeros, np.array([True, True]), None, np.array([1, 1]))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("half_life_rows", 0.5), ("half_life_rows", math.nan), ("refit_every_rows", 0), ("prior_weight", 0.0)],
)
def test_setting_out_of_bounds_is_named(setting: str, value: float) -> None:
    """The error names the setting and its value."""
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        CalibratorConfig(**{setting: value})  # type: ignore[arg-type]
