"""Instruments of served p against figures over rows, early ones against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from calibration.delay_law import DelayLaw
from calibration.head import HeadCalibration
from calibration.instruments import Figures, Instruments, figures
from calibration.logistic import sigmoid
from tests.calibration.known_truth import PLAN, Delays, Teller, displays, exponential, log_normal


def shown_figures(head: HeadCalibration, *, window_s: int = 600) -> dict[tuple[str, str, str], Figures]:
    """By period, slice and value."""
    parts = [(head.instruments, head.law)]
    found = figures(parts, PLAN, click_window_s=head.config.click_window_s, windows_s=(window_s,))
    return {(one.period, one.slice, one.value): one for one in found}


@pytest.mark.parametrize("delays", [exponential, log_normal])
@pytest.mark.parametrize("seed", range(3))
def test_two_minutes_after_the_start_early_figures_are_true(delays: Delays, seed: int) -> None:
    """1,000 displays/s at 1 %: O/E of what came over what should have come so far, within 0.03 of all clicks' O/E."""
    shown = displays([1_000.0] * 120, 0.01, delays=delays, seed=seed)
    head = Teller(shown).until(120)
    early = shown_figures(head)["early", "all", "all"]
    true = shown.clicked.sum() / sigmoid(shown.logit).sum()
    assert early.observed_over_expected == pytest.approx(true, abs=0.03)
    assert early.clicks < 0.97 * shown.clicked.sum(), "counting all exposures in full would be off by more"


@pytest.mark.parametrize("delays", [exponential, log_normal])
@pytest.mark.parametrize("scene", ["ramp", "doubled", "outage"])
def test_early_figures_stay_true_whatever_the_traffic_does(delays: Delays, scene: str) -> None:
    """Through a ramp, a click rate that doubles unknown to the model, and after an outage, each minute."""
    rates = {
        "ramp": np.linspace(20.0, 1_000.0, 600),
        "doubled": np.full(600, 500.0),
        "outage": np.repeat([500.0, 0.0, 500.0], 200),
    }[scene]
    jump = math.log(2.0) if scene == "doubled" else 0.0
    shown = displays(
        rates.tolist(), 0.02, delays=delays, truth=lambda s, z, _p: z + np.where(s < 300, 0.0, jump), seed=3
    )
    teller, p = Teller(shown), sigmoid(shown.logit)
    for minute in range(2, 10):
        head = teller.until(60.0 * minute)
        young = slice(*np.searchsorted(shown.ts_ms, [60_000 * (minute - 1), 60_000 * minute]).tolist())
        if not shown.clicked[young].any():
            continue
        early = shown_figures(head, window_s=60)["early", "all", "all"]
        true = shown.clicked[young].sum() / p[young].sum()
        clicks = max(int(shown.clicked[young].sum()), 1)
        assert early.observed_over_expected / true == pytest.approx(1.0, abs=0.03 + 2 / math.sqrt(clicks)), minute
    assert shown_figures(head)["early", "all", "all"].observed_over_expected == pytest.approx(
        shown.clicked[shown.ts_ms < 540_000].sum() / p[shown.ts_ms < 540_000].sum(), rel=0.03
    )


def test_mature_figures_are_those_of_the_labelled_rows() -> None:
    """O/E, log loss, normalised entropy and AUC, of all and of each slice; AUC but for ties within a bin."""
    shown = displays([200.0] * 1_200, 0.1, truth=lambda _s, z, p: 0.8 * z - 0.4 + 0.2 * (p == 2))
    head = Teller(shown, HeadCalibration(PLAN, CalibratorConfig(click_window_s=120.0))).until(1_200)
    found = shown_figures(head, window_s=600)
    for name, mine in [("all", np.ones(len(shown.ts_ms), bool)), ("placement", shown.placement == 2)]:
        value = (
            "all"
            if name == "all"
            else PLAN.slices[0].value_name(
                int(PLAN.slices[0].codes(np.full((1, 1), 2, np.uint64), np.zeros((1, 0), np.float32))[0])
            )
        )
        one = found["mature", name, value]
        at = np.flatnonzero(mine & (shown.ts_ms >= 480_000) & (shown.ts_ms < 1_080_000))
        clicked, p = shown.clicked[at], sigmoid(shown.logit[at])
        assert (one.exposures, one.clicks) == (len(at), clicked.sum())
        assert one.observed_over_expected == pytest.approx(clicked.sum() / p.sum(), rel=1e-4)
        loss = -np.mean(np.where(clicked, np.log(p), np.log1p(-p)))
        rate = clicked.mean()
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        assert one.log_loss == pytest.approx(loss, rel=1e-3)
        assert one.normalised_entropy == pytest.approx(loss / entropy, rel=1e-3)
        assert one.auc == pytest.approx(auc(clicked, p), abs=0.004)


def auc(clicked: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """By ranks; p has no ties."""
    ranks = np.empty(len(p))
    ranks[np.argsort(p)] = np.arange(1, len(p) + 1)
    n = clicked.sum()
    return float((ranks[clicked].sum() - n * (n + 1) / 2) / (n * (len(p) - n)))


def test_early_log_loss_is_that_of_the_labels_to_come() -> None:
    """Exposures weigh the share of their clicks that should have come: fresh ones do not look like non-clicks."""
    shown = displays([500.0] * 60, 0.2, seed=2)
    early = shown_figures(Teller(shown).until(60))["early", "all", "all"]
    p = sigmoid(shown.logit)
    loss = -np.mean(np.where(shown.clicked, np.log(p), np.log1p(-p)))
    assert early.log_loss == pytest.approx(loss, rel=0.03)


def test_figures_of_nothing_are_not_numbers() -> None:
    """No displays, no ratio."""
    assert figures([], PLAN, click_window_s=600.0) == []
    (one, *_) = figures([(Instruments(), DelayLaw())], PLAN, click_window_s=600.0)
    assert (one.exposures, one.clicks) == (0, 0)
    assert all(
        math.isnan(value) for value in (one.observed_over_expected, one.log_loss, one.normalised_entropy, one.auc)
    )


def test_p_of_zero_and_one_have_finite_figures() -> None:
    """A saturated model is bad, not an error."""
    instruments = Instruments()
    instruments.add_exposures(np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([0.0, 1.0], np.float32))
    instruments.add_clicks(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([0.0], np.float32))
    instruments.table.advance(10_000, 10**9)
    (one, *_) = figures([(instruments, DelayLaw())], PLAN, click_window_s=600.0)
    assert math.isfinite(one.log_loss)
