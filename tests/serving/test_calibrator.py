"""The hot calibrator: what it merges, when it fits, and what it says of served p."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.config import CalibratorConfig
from calibration.head import HeadCalibration
from calibration.merged import map_of
from calibration.slices import Slice, SlicePlan
from serving.calibrator import HotCalibrator
from stream.records.wire import CalibrationRecord
from tests.calibration.known_truth import Teller, conversions, displays

GRID = np.linspace(-4, 4, 33, dtype=np.float32)
NO_SLICES = SlicePlan()


@cache
def state_of(seed: int, plan: SlicePlan = NO_SLICES, *, seconds: int = 120) -> HeadCalibration:
    """The state after two minutes of a model that spreads its log-odds twice as far as is true."""
    shown = displays([100.0] * seconds, 0.2, truth=lambda _s, z, _p: -1.4 + 0.5 * (z + 1.4), seed=seed, spread=1.5)
    return Teller(shown, HeadCalibration(plan, CalibratorConfig())).until(seconds)


def record(
    partition: int, version: int, state: HeadCalibration, watermark_ms: int = 0, line: int = 0
) -> CalibrationRecord:
    """A calibration record."""
    return CalibrationRecord(
        partition=partition,
        version=version,
        rows=state.exposures + state.events,
        watermark_ms=watermark_ms,
        state=state.to_bytes(),
        next_offset=0,
        line=line,
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=15))
def test_the_map_is_that_of_the_newest_state_of_every_partition(offers: list[tuple[int, int]]) -> None:
    """Whatever order states come in, the map and its version are those of the newest of each partition together."""
    hot = HotCalibrator(refit_interval_s=0)
    newest: dict[int, int] = {}
    for partition, version in offers:
        taken = hot.offer(record(partition, version, state_of((partition + version) % 5), watermark_ms=version))
        assert taken == (version > newest.get(partition, 0))
        newest[partition] = max(version, newest.get(partition, 0))
    expected = map_of([state_of((p + v) % 5) for p, v in sorted(newest.items())])
    assert not expected.is_identity
    np.testing.assert_array_equal(hot.map.apply(GRID), expected.apply(GRID))
    assert hot.map.version == sum(newest.values())
    assert hot.watermark_ms == min(newest.values())


def test_before_any_state_the_map_is_the_identity() -> None:
    """And nothing holds applied time back."""
    hot = HotCalibrator()
    assert (hot.map.version, hot.watermark_ms) == (0, None)
    np.testing.assert_allclose(hot.map.apply(GRID), 1 / (1 + np.exp(-GRID)), rtol=1e-6)


def test_fits_are_spaced_in_event_time() -> None:
    """Ten states within a second make one more fit only when a second of event time has passed."""
    hot = HotCalibrator(refit_interval_s=1.0)
    fits = []
    for version in range(1, 11):
        hot.offer(record(0, version, state_of(version % 5), watermark_ms=1_000 + 50 * version))
        fits.append(hot.map)
    assert all(fit is fits[0] for fit in fits)
    assert hot.map.version == 1
    hot.offer(record(0, 11, state_of(1), watermark_ms=2_050))
    assert hot.map.version == 11


def test_a_heartbeat_moves_the_watermark_and_fits_what_waits() -> None:
    """A record of the same version with a later watermark brings no new state, but time."""
    hot = HotCalibrator(refit_interval_s=1.0)
    hot.offer(record(0, 1, state_of(1), watermark_ms=1_000))
    hot.offer(record(0, 2, state_of(2), watermark_ms=1_500))
    assert hot.map.version == 1
    assert hot.offer(record(0, 2, state_of(2), watermark_ms=2_000))
    assert (hot.map.version, hot.watermark_ms) == (2, 2_000)


def test_a_damaged_or_foreign_state_is_refused_and_the_rest_stays() -> None:
    """The map goes on as it was."""
    hot = HotCalibrator(refit_interval_s=0)
    hot.offer(record(0, 1, state_of(1)))
    before = hot.map
    good = record(1, 1, state_of(2))
    damaged = CalibrationRecord(
        partition=1, version=1, rows=1, watermark_ms=9, state=good.state[:-1] + b"\x07", next_offset=0
    )
    with pytest.raises(ValueError, match="CRC"):
        hot.offer(damaged)
    with pytest.raises(ValueError, match="other slices"):
        hot.offer(record(1, 1, state_of(2, SlicePlan((Slice("placement", 3),)))))
    with pytest.raises(ValueError, match="examples waited for labels"):
        hot.offer(CalibrationRecord(partition=1, version=1, rows=1, watermark_ms=9, state=b"MSBN" * 9, next_offset=0))
    assert hot.map is before
    assert hot.offer(good)


def test_figures_are_those_of_served_p_over_all_partitions() -> None:
    """Early ones of the last click window; nothing is mature yet, and nothing of it is told."""
    hot = HotCalibrator(refit_interval_s=0)
    for partition in range(2):
        hot.offer(record(partition, 1, state_of(partition)))
    early, mature = (one for one in hot.figures() if one.window_s == 600)
    assert (early.head, early.maturity, early.slice, mature.maturity) == ("click", "early", "all", "mature")
    assert early.exposures == sum(state_of(partition).exposures for partition in range(2))
    assert early.observed == sum(state_of(partition).events for partition in range(2))
    true = displays([100.0] * 120, 0.2, truth=lambda _s, z, _p: -1.4 + 0.5 * (z + 1.4), seed=0, spread=1.5)
    promised = float(np.sum(1 / (1 + np.exp(-true.logit.astype(np.float64)))))
    assert early.observed_over_expected == pytest.approx(true.clicked.sum() / promised, abs=0.05)
    assert mature.exposures == 0


def test_each_head_has_its_own_map_and_figures() -> None:
    """Of the same record; a partition without a state of conversions adds nothing to theirs."""
    hot = HotCalibrator(refit_interval_s=0)
    converted, early = conversions(stretch=2.0)
    hot.offer(msgspec.structs.replace(record(0, 1, state_of(1)), conversion_state=converted.to_bytes()))
    hot.offer(record(1, 1, state_of(3)))
    expected = map_of([converted])
    assert not expected.is_identity
    np.testing.assert_array_equal(hot.conversion_map.apply(GRID), expected.apply(GRID))
    np.testing.assert_array_equal(hot.map.apply(GRID), map_of([state_of(1), state_of(3)]).apply(GRID))
    windows = {(one.head, one.window_s) for one in hot.figures()}
    assert windows == {("click", 60), ("click", 600), ("click", 3_600), ("conversion", 3_600), ("conversion", 86_400)}
    shown = {(one.head, one.maturity, one.window_s): one for one in hot.figures()}
    assert shown["conversion", "early", 3_600].exposures > 3_000
    assert shown["conversion", "early", 86_400].observed_over_expected == pytest.approx(early[30])


def test_the_map_is_that_of_the_line_that_is_served() -> None:
    """A state of another line waits; a new line brings its own, and what is counted since adds to it."""
    hot = HotCalibrator(refit_interval_s=0)
    hot.serve_line(1)
    hot.offer(record(0, 1, state_of(1), watermark_ms=1, line=1))
    old = hot.map
    np.testing.assert_array_equal(old.apply(GRID), map_of([state_of(1)]).apply(GRID))
    hot.offer(record(0, 2, state_of(2), watermark_ms=2, line=9))  # of the line that is not served yet
    np.testing.assert_array_equal(hot.map.apply(GRID), old.apply(GRID))
    hot.serve_line(9, state_of(3).to_bytes())
    np.testing.assert_array_equal(hot.map.apply(GRID), map_of([state_of(3), state_of(2)]).apply(GRID))
    hot.serve_line(12)
    assert hot.map.is_identity
    with pytest.raises(ValueError, match="drop it"):
        hot.serve_line(13, b"damaged")
    assert (hot.line, hot.map.is_identity) == (13, True)


def test_states_whose_line_is_not_known_fit_any() -> None:
    """A calibrator without a store of snapshots cannot tell; its map is served as ever."""
    hot = HotCalibrator(refit_interval_s=0)
    hot.serve_line(4)
    hot.offer(record(0, 1, state_of(1)))
    assert not hot.map.is_identity
