"""The isotonic fit against its definition, and the map fitted with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.bins import BinState, LogitGrid
from calibration.isotonic import MIN_SLOPE, fit_map, pava, pava_blocks
from calibration.logistic import sigmoid
from calibration.reliability import observed_over_expected
from tests.calibration.rows import Rows, drifting_stream, log_loss, rows

points = st.lists(st.tuples(st.floats(-10, 10), st.floats(0.01, 100)), min_size=1, max_size=25)


@given(points)
def test_pava_equals_the_min_max_formula(drawn: list[tuple[float, float]]) -> None:
    """f(i) is the least over ends >= i of the greatest over starts <= i of the mean between them."""
    y, w = np.array(drawn).T
    n = len(y)
    slow = [
        min(max(np.average(y[a : b + 1], weights=w[a : b + 1]) for a in range(i + 1)) for b in range(i, n))
        for i in range(n)
    ]
    np.testing.assert_allclose(pava(y, w), slow, rtol=1e-9, atol=1e-9)


@given(points)
def test_pava_blocks_rise_and_keep_the_total(drawn: list[tuple[float, float]]) -> None:
    """Blocks rise strictly, start at 0, and the weighted sum of the fit is that of the values."""
    y, w = np.array(drawn).T
    starts, values = pava_blocks(y, w)
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert (np.diff(values) > 0).all()
    assert w @ pava(y, w) == pytest.approx(w @ y, abs=1e-6)


@pytest.mark.parametrize("w", [0.0, -1.0, float("nan"), float("inf")])
def test_pava_refuses_weights_that_are_not_positive(w: float) -> None:
    """An empty bin has no rate to fit."""
    with pytest.raises(ValueError, match="positive weights"):
        pava(np.zeros(2), np.array([1.0, w]))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=80),
    st.integers(1, 20),
)
def test_binned_fit_stays_within_the_published_bound(drawn: list[tuple[int, float]], bins: int) -> None:
    """Mean squared deviation from the fit of the rows <= 1.25 x the share of the fullest bin."""
    drawn.sort(key=lambda row: row[0])
    x, y = np.array(drawn).T
    bin_of = (x * bins / 41).astype(int)
    _, at = np.unique(x, return_inverse=True)
    exact = pava(np.bincount(at, y) / np.bincount(at), np.bincount(at).astype(float))[at]
    _, at = np.unique(bin_of, return_inverse=True)
    share = np.bincount(at)
    binned = pava(np.bincount(at, y) / share, share.astype(float))[at]
    assert np.mean((exact - binned) ** 2) <= 1.25 * share.max() / len(y) + 1e-12


def state_of(batch: Rows) -> BinState:
    """A state that holds the batch."""
    state = BinState()
    state.add(*batch)
    return state


@pytest.mark.parametrize("prior_weight", [1.0, 50_000.0])
def test_without_data_the_map_is_the_identity(prior_weight: float) -> None:
    """No rows, no correction: p is exactly sigmoid(logit)."""
    logits = np.linspace(-30, 30, 1001, dtype=np.float32)
    curve = fit_map(BinState(), prior_weight=prior_weight)
    assert np.array_equal(curve.apply(logits), sigmoid(logits).astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(rows(), st.sampled_from([0.01, 100.0, 50_000.0]))
def test_map_keeps_the_ranking_whatever_was_learned(batch: Rows, prior_weight: float) -> None:
    """Logits rise strictly to calibrated log-odds inside the rows, between them and beyond the grid."""
    curve = fit_map(state_of(batch), prior_weight=prior_weight)
    logits = np.unique(np.concatenate([np.linspace(-45, 45, 2001), curve.logits, curve.logits + 1e-9]))
    logits = logits[np.append(True, np.diff(logits) > 1e-10)]
    assert (np.diff(curve.log_odds_of(logits)) > 0).all()
    assert (np.diff(curve.apply(logits)) >= 0).all()


def test_few_hundred_rows_move_the_average_but_do_not_bend_the_map() -> None:
    """After 300 rows of a calibrated model, no probability of its range is off by more than 0.06."""
    logits = np.linspace(-2.5, 2.5, 101)
    for seed in range(5):
        batch = drifting_stream(seed, 300, start=-0.3, stop=-0.3, bias=0.0)
        curve = fit_map(state_of(batch))
        assert np.abs(curve.apply(logits) - sigmoid(logits)).max() < 0.06


def test_a_bent_model_is_straightened_by_many_rows() -> None:
    """A million rows of a model that is bent, not just shifted or stretched, end within 0.02 of the truth."""
    random = np.random.default_rng(0)
    true = random.normal(0, 1, 1_000_000)
    raw = np.where(true > 0, 2 * true, 0.5 * true).astype(np.float32)
    state = BinState()
    state.add(raw, random.random(len(true)) < sigmoid(true))
    curve = fit_map(state, prior_weight=5_000.0)
    grid = np.linspace(-1.8, 1.8, 50)
    bent = np.where(grid > 0, 2 * grid, 0.5 * grid)
    assert np.abs(curve.apply(bent) - sigmoid(grid)).max() < 0.02
    assert np.abs(sigmoid(bent) - sigmoid(grid)).max() > 0.1


@pytest.mark.parametrize("centre", [-4.6, 0.0])
def test_rare_and_common_clicks_are_both_calibrated(centre: float) -> None:
    """At a CTR of 1 % or 50 %, a bias of 0.3 log-odds leaves no more than 5 % of O/E after 400,000 rows."""
    learned = drifting_stream(1, 400_000, start=centre, stop=centre, bias=0.3)
    fresh = drifting_stream(2, 400_000, start=centre, stop=centre, bias=0.3)
    p = fit_map(state_of(learned)).apply(fresh.logits)
    assert observed_over_expected(fresh.labels, p) == pytest.approx(1.0, abs=0.05)
    assert log_loss(fresh.labels, p) < log_loss(fresh.labels, sigmoid(fresh.logits))


def test_rare_clicks_ask_for_more_rows_before_the_map_bends() -> None:
    """100,000 rows of a calibrated model at a CTR of 0.8 % bend the map by 0.14 log-odds at most on average."""
    logits = np.linspace(-7.3, -3.3, 101)
    bent = []
    for seed in range(6):
        curve = fit_map(state_of(drifting_stream(seed, 100_000, start=-5.3, stop=-5.3, bias=0.0)))
        bent.append(np.abs(curve.log_odds_of(logits) - logits).max())
    assert np.mean(bent) < 0.14


def test_map_of_a_model_that_tells_nothing_still_rises() -> None:
    """Where every bin clicks alike, knots keep the least slope, so that float64 tells neighbours apart."""
    logits = np.repeat(np.linspace(-2, 2, 401, dtype=np.float32), 2)
    state = BinState()
    state.add(logits, np.tile([True, False], 401), np.full(802, 1e6, np.float32))
    curve = fit_map(state)
    assert len(curve.logits) > 1
    assert (np.diff(curve.log_odds) / np.diff(curve.logits)).min() == pytest.approx(MIN_SLOPE, rel=1e-3)


def test_a_model_that_ranks_backwards_is_levelled_not_turned_round() -> None:
    """Where higher logits click less, the map is nearly flat and still rises."""
    random = np.random.default_rng(3)
    true = random.normal(0, 1, 200_000)
    state = BinState()
    state.add(-true.astype(np.float32), random.random(len(true)) < sigmoid(true))
    p = fit_map(state).apply(np.linspace(-2, 2, 9))
    assert (np.diff(p) > 0).all()
    assert p[-1] - p[0] < 0.05


def test_logits_outside_the_rows_keep_slope_one() -> None:
    """Beyond the learned range the map runs parallel to the identity."""
    batch = drifting_stream(4, 50_000, start=0.0, stop=0.0, bias=0.5, stretch=1.5)
    curve = fit_map(state_of(batch))
    beyond = curve.logits[-1] + np.array([0.0, 1.0, 5.0])
    np.testing.assert_allclose(np.diff(curve.log_odds_of(beyond)), [1.0, 4.0])


@pytest.mark.parametrize("prior_weight", [0.0, -1.0, float("nan"), float("inf")])
def test_prior_that_is_not_positive_is_refused(prior_weight: float) -> None:
    """Without a prior, single clicks would become certainties."""
    with pytest.raises(ValueError, match="prior_weight"):
        fit_map(BinState(LogitGrid()), prior_weight=prior_weight)
