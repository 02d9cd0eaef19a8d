"""Exact weighted isotonic regression over bins, and the calibration map fitted with it."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

from calibration.bins import WEIGHT_SCALE, BinState
from calibration.curve import CalibrationMap
from calibration.logistic import logit, sigmoid

SHIFT_PRIOR_SD: Final = 0.3  # log-odds; how far off the average of a sound model is expected to be
SLOPE_PRIOR_SD: Final = 0.05  # how far its log-odds are expected to be stretched
PRIOR_WEIGHT: Final = 50_000.0  # see fit_map
MIN_SLOPE: Final = 1e-3  # of the map, in log-odds per log-odd: neighbours that nearly tie stay in order
_MAX_LOG_ODDS: Final = 30.0  # beyond it 1 - p has no bits left in float64


def pava(y: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing f that minimises sum of w (y - f)^2, by pooling adjacent violators; O(n).

    y : (n,) finite values. w : (n,) positive weights. Returns (n,). Raises ValueError for anything else.
    Barlow, Bartholomew, Bremner, Brunk: Statistical Inference under Order Restrictions (1972), section 1.2.

    Over logit bins (y the click rate of a bin, w its weight) this is the exact isotonic fit of the binned
    rows. Its mean squared deviation from the isotonic fit g of the rows themselves is at most 1.25 x the
    share s of the fullest bin. With h the bin means of g: |g - h|^2 <= s / 4, since g rises by at most 1 in
    all; |h - fit|^2 <= <g - y, h - g> <= s by the projection inequalities of both fits; and the two are
    orthogonal.
    """
    starts, values = pava_blocks(y, w)
    return np.repeat(values, np.diff(np.append(starts, len(y))))


def pava_blocks(y: NDArray[np.float64], w: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fit of `pava` as its K level blocks: (K,) first positions and (K,) strictly increasing values."""
    y, w = np.asarray(y, dtype=np.float64), np.asarray(w, dtype=np.float64)
    if y.ndim != 1 or y.shape != w.shape:
        raise ValueError(f"y {y.shape} and w {w.shape} must be 1-d and of one length: give each value one weight.")
    good = np.isfinite(y) & np.isfinite(w) & (w > 0)
    if not good.all():
        at = int(np.argmin(good))
        raise ValueError(
            f"y={y[at]} with w={w[at]} at {at}: isotonic regression needs finite values and positive "
            "weights. Leave empty bins out."
        )
    fit = isotonic_regression(y, weights=w)
    starts = np.asarray(fit.blocks[:-1], dtype=np.int64)
    return starts, np.asarray(fit.x[starts], dtype=np.float64)


def fit_map(state: BinState, *, prior_weight: float = PRIOR_WEIGHT, version: int = 0) -> CalibrationMap:
    """The calibration map of the rows in `state`, in two steps that each fall back on the one before.

    1. Platt's line: log-odds = logit + shift + stretch. Both start from the identity with a Gaussian prior, so a few
       hundred rows correct the average and little else, and no rows leave the identity.
    2. Isotonic regression of the bins' click rates, where each bin also holds pseudo-rows that click as the line says.
       `prior_weight` is their number per unit of log-odds at p = 1/2; elsewhere it grows as 1 / (4 p (1 - p)), so that
       a log-odds error weighs the same at 1 % CTR as at 50 %. Where a unit of log-odds holds fewer rows than that, the
       line speaks; where it holds many more, the isotonic fit of the data does. Isotonic regression alone costs 4e-4 of
       log loss on 50,000 rows that were calibrated before; with the default prior, line and all cost less than 1e-4.

    Knots sit at the weighted mean logit of each level block, and the map runs straight between them in
    log-odds; beyond the rows it goes on with slope 1. Raises ValueError for a prior that is not positive.
    """
    if not (np.isfinite(prior_weight) and prior_weight > 0):
        raise ValueError(
            f"prior_weight={prior_weight} must be positive and finite: without a prior one click in an "
            f"end bin maps to probability 1. The default is {PRIOR_WEIGHT:g}."
        )
    weight = state.w / WEIGHT_SCALE
    clicks = state.wy / WEIGHT_SCALE
    return fit_bins(state.grid.centres, weight, clicks, prior_weight=prior_weight, version=version)


def fit_bins(
    centres: NDArray[np.float64],
    weight: NDArray[np.float64],
    clicks: NDArray[np.float64],
    *,
    prior_weight: float = PRIOR_WEIGHT,
    version: int = 0,
) -> CalibrationMap:
    """`fit_map` of n equal bins: (n,) middles in log-odds, rows and clicks; empty bins are fine."""
    filled = np.flatnonzero(weight)
    if len(filled) == 0:
        return CalibrationMap.identity(version)
    width = float(centres[1] - centres[0])
    span = slice(int(filled[0]), int(filled[-1]) + 1)
    centres, weight, clicks = centres[span], weight[span], np.minimum(clicks[span], weight[span])
    expected = sigmoid(np.clip(_platt_line(centres, weight, clicks), -_MAX_LOG_ODDS, _MAX_LOG_ODDS))
    pseudo = prior_weight * width / (4.0 * expected * (1.0 - expected))
    mass = weight + pseudo
    starts, rates = pava_blocks((clicks + pseudo * expected) / mass, mass)
    knots = np.add.reduceat(mass * centres, starts) / np.add.reduceat(mass, starts)
    rising = np.maximum.accumulate(logit(rates) - MIN_SLOPE * knots) + MIN_SLOPE * knots
    return CalibrationMap(logits=knots, log_odds=rising, version=version)


def _platt_line(
    centres: NDArray[np.float64], weight: NDArray[np.float64], clicks: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) log-odds of the line through the bins that is most probable under the Gaussian priors.

    Platt, Probabilistic Outputs for Support Vector Machines (1999), with the prior around the identity.
    Newton's method; the objective is concave, and a step that overshoots is halved.
    """
    columns = np.stack([np.ones_like(centres), centres - np.average(centres, weights=weight)])  # (2, n)
    precision = np.array([SHIFT_PRIOR_SD, SLOPE_PRIOR_SD]) ** -2.0

    def objective(theta: NDArray[np.float64]) -> float:
        line = centres + theta @ columns
        return float(np.sum(clicks * line - weight * np.logaddexp(0.0, line)) - precision @ theta**2 / 2)

    theta = np.zeros(2)
    best = objective(theta)
    for _ in range(50):
        p = sigmoid(centres + theta @ columns)
        gradient = columns @ (clicks - weight * p) - precision * theta
        curvature = (columns * (weight * p * (1.0 - p))) @ columns.T + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        while (reached := objective(theta + step)) < best and np.abs(step).max() > 1e-12:
            step = step / 2
        theta, best = theta + step, reached
        if np.abs(step).max() < 1e-9:
            break
    theta[1] = max(float(theta[1]), MIN_SLOPE - 1.0)  # a model that ranks backwards is not turned round
    return np.asarray(centres + theta @ columns)
