"""The calibration map as a value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from calibration.curve import CalibrationMap
from calibration.logistic import logit, sigmoid


@given(hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(-80, 80, width=32)))
def test_identity_is_the_sigmoid(logits: NDArray[np.float32]) -> None:
    """The identity map gives sigmoid(logit), as float32 of the same shape."""
    p = CalibrationMap.identity().apply(logits)
    assert p.dtype == np.float32
    assert p.shape == logits.shape
    np.testing.assert_array_equal(p, sigmoid(logits).astype(np.float32))


@given(st.floats(0.001, 0.999))
def test_logit_undoes_the_sigmoid(p: float) -> None:
    """The two functions the map is written in are inverse to each other."""
    assert sigmoid(logit(np.array([p])))[0] == pytest.approx(p, rel=1e-12)


def test_map_runs_straight_between_knots_and_parallel_beyond_them() -> None:
    """Log-odds are interpolated between knots and go on with slope 1."""
    curve = CalibrationMap(np.array([0.0, 2.0]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(curve.log_odds_of(np.array([-3.0, 0.0, 1.0, 2.0, 4.0])), [-2.0, 1.0, 1.5, 2.0, 4.0])


def test_infinite_scores_saturate_and_nan_stays_nan() -> None:
    """A diverged score neither raises nor turns into a probability by accident."""
    p = CalibrationMap.identity().apply(np.array([-np.inf, np.inf, np.nan]))
    assert p[:2].tolist() == [0.0, 1.0]
    assert np.isnan(p[2])


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=20, unique=True),
    st.integers(-(2**62), 2**62),
)
def test_bytes_round_trip(knots: list[float], version: int) -> None:
    """Knots and version survive the bytes to the bit."""
    rising = np.sort(np.array(knots))
    curve = CalibrationMap(rising, rising, version)
    back = CalibrationMap.from_bytes(curve.to_bytes())
    assert back.to_bytes() == curve.to_bytes()
    assert back.version == version
    assert np.array_equal(back.logits, rising)


@pytest.mark.parametrize("cut", [slice(0, 5), slice(0, -1), slice(0, -8)])
def test_cut_bytes_are_refused(cut: slice) -> None:
    """A map cut short raises instead of mapping by half a curve."""
    with pytest.raises(ValueError, match=r"shorter|cut or damaged"):
        CalibrationMap.from_bytes(CalibrationMap.identity().to_bytes()[cut])


def test_foreign_and_flipped_bytes_are_refused() -> None:
    """Another magic and a flipped bit each raise."""
    data = CalibrationMap.identity().to_bytes()
    with pytest.raises(ValueError, match="starts with"):
        CalibrationMap.from_bytes(b"????" + data[4:])
    with pytest.raises(ValueError, match="damaged"):
        CalibrationMap.from_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("logits", "log_odds"),
    [([], []), ([0.0, 0.0], [0.0, 1.0]), ([0.0, 1.0], [1.0, 0.0]), ([0.0], [np.nan]), ([0.0], [0.0, 1.0])],
)
def test_knots_that_would_reorder_ads_are_refused(logits: list[float], log_odds: list[float]) -> None:
    """Knots must be finite, paired and strictly increasing."""
    with pytest.raises(ValueError, match="calibration map"):
        CalibrationMap(np.array(logits), np.array(log_odds))


def test_map_does_not_alias_its_input_and_cannot_be_written() -> None:
    """A published map never changes."""
    knots = np.array([0.0, 1.0])
    curve = CalibrationMap(knots, knots)
    knots[0] = -5.0
    assert curve.logits[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        curve.logits[0] = 1.0
