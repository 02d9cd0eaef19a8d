"""The hot calibrator: what it merges, and when it fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.bins import BinState, LogitGrid
from calibration.stream import merged_map
from serving.calibrator import HotCalibrator
from stream.records import CalibrationRecord

GRID = np.linspace(-4, 4, 33, dtype=np.float32)


def state_of(seed: int, rows: int = 4_000, grid: LogitGrid | None = None) -> BinState:
    """A state of random rows that click at half the predicted rate."""
    state, random = BinState(grid), np.random.default_rng(seed)
    logits = random.normal(-1, 1, rows).astype(np.float32)
    state.add(logits, random.random(rows) < 0.5 / (1 + np.exp(-logits)))
    return state


def record(partition: int, version: int, state: BinState, watermark_ms: int = 0) -> CalibrationRecord:
    """A calibration record."""
    return CalibrationRecord(
        partition=partition,
        version=version,
        rows=round(state.total_weight),
        watermark_ms=watermark_ms,
        state=state.to_bytes(),
        next_offset=0,
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=15))
def test_the_map_is_that_of_the_newest_state_of_every_partition(offers: list[tuple[int, int]]) -> None:
    """Whatever order states come in, the map and its version are those of the newest of each partition together."""
    hot = HotCalibrator(refit_interval_s=0)
    newest: dict[int, int] = {}
    for partition, version in offers:
        taken = hot.offer(record(partition, version, state_of(10 * partition + version), watermark_ms=version))
        assert taken == (version > newest.get(partition, 0))
        newest[partition] = max(version, newest.get(partition, 0))
    expected = merged_map(state_of(10 * p + v) for p, v in newest.items())
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
    for version in range(1, 11):
        hot.offer(record(0, version, state_of(version), watermark_ms=1_000 + 50 * version))
    assert (hot.refits, hot.map.version) == (1, 1)
    hot.offer(record(0, 11, state_of(11), watermark_ms=2_050))
    assert (hot.refits, hot.map.version) == (2, 11)


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
    with pytest.raises(ValueError, match="bins=512"):
        hot.offer(record(1, 1, state_of(2, grid=LogitGrid(bins=512))))
    assert hot.map is before
    assert hot.offer(good)
