"""Exact weighted isotonic regression, and the map from raw logits to calibrated probabilities made of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.bins import WEIGHT_SCALE, BinState
from calibration.curve import CalibrationMap

MIN_SLOPE = 1e-3  # of the map between knots, in log-odds per log-odd: near-ties of neighbouring blocks stay ordered
SHIFT_PRIOR_SD = 0.2
SLOPE_PRIOR_SD = 0.2  # log-odds; how far the average of a sound model is expected to lie from its labels
PRIOR_WEIGHT = 2000.0


def pava(y: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing f that minimises sum w (y - f)^2, by pooling adjacent violators, in O(n).

    y : (n,) values, finite. w : (n,) weights, positive. Returns (n,).
    Barlow et al., Statistical Inference under Order Restrictions (1972), section 1.2.
    """
    starts, values = pava_blocks(y, w)
    return np.repeat(values, np.diff(np.append(starts, len(y))))


def pava_blocks(y: NDArray[np.float64], w: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fit of `pava` as K maximal constant blocks: (K,) first positions and (K,) strictly increasing values."""
    y, w = np.asarray(y, dtype=np.float64), np.asarray(w, dtype=np.float64)
    if y.ndim != 1 or y.shape != w.shape:
        raise ValueError(f"y {y.shape} and w {w.shape} must be 1-d of one length: give one weight a value.")
    if not (np.isfinite(y).all() and np.isfinite(w).all() and (w > 0).all()):
        raise ValueError("isotonic regression needs finite values and positive weights: leave out empty bins.")
    starts: list[int] = []
    means: list[float] = []
    weights: list[float] = []
    for i, (mean, weight) in enumerate(zip(y.tolist(), w.tolist(), strict=True)):
        start = i
        while means and means[-1] >= mean:
            total = weights[-1] + weight
            mean += (means.pop() - mean) * (weights.pop() / total)
            weight, start = total, starts.pop()
        starts.append(start)
        means.append(mean)
        weights.append(weight)
    return np.asarray(starts, dtype=np.int64), np.asarray(means, dtype=np.float64)


def fit_map(state: BinState, *, prior_weight: float = PRIOR_WEIGHT, version: int = 0) -> CalibrationMap:
    if not (np.isfinite(prior_weight) and prior_weight > 0):
        raise ValueError(
            f"prior_weight={prior_weight} must be positive and finite: without a prior a bin of one click maps to "
            f"probability 1. The default is {PRIOR_WEIGHT:g}."
        )
    weight = np.maximum(state.w, 0) / WEIGHT_SCALE
    clicks = np.clip(state.wy / WEIGHT_SCALE, 0.0, weight)
    held = np.flatnonzero(weight)
    if len(held) == 0:
        return CalibrationMap.identity(version)
    span = slice(int(held[0]), int(held[-1]) + 1)
    centres, weight, clicks = state.grid.centres[span], weight[span], clicks[span]
    line = _fit_line(centres, weight, clicks)
    prior_p = _sigmoid(line)
    prior = prior_weight * state.grid.width / (4.0 * prior_p * (1.0 - prior_p))
    mass = weight + prior
    starts, rates = pava_blocks((clicks + prior * prior_p) / mass, mass)
    knots = np.add.reduceat(mass * centres, starts) / np.add.reduceat(mass, starts)
    log_odds = np.log(rates) - np.log1p(-rates)
    rising = np.maximum.accumulate(log_odds - MIN_SLOPE * knots) + MIN_SLOPE * knots
    return CalibrationMap(logits=knots, log_odds=rising, version=version)


def _fit_line(
    centres: NDArray[np.float64], weight: NDArray[np.float64], clicks: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) log-odds of Platt's line through the bins, its shift and slope drawn to 0 and 1 by a Gaussian prior.

    Newton's method on a concave objective; a step is halved until it does not lose. The slope stays above MIN_SLOPE.
    """
    columns = np.stack([np.ones_like(centres), centres - np.average(centres, weights=weight)])  # (2, n)
    precision = np.array([SHIFT_PRIOR_SD, SLOPE_PRIOR_SD]) ** -2.0

    def objective(theta: NDArray[np.float64]) -> float:
        z = centres + theta @ columns
        return float(np.sum(clicks * z - weight * np.logaddexp(0.0, z)) - 0.5 * precision @ theta**2)

    theta, best = np.zeros(2), objective(np.zeros(2))
    for _ in range(50):
        p = _sigmoid(centres + theta @ columns)
        gradient = columns @ (clicks - weight * p) - precision * theta
        curvature = (columns * (weight * p * (1.0 - p))) @ columns.T + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        while (value := objective(theta + step)) < best and np.abs(step).max() > 1e-12:
            step = step / 2
        theta, best = theta + step, value
        if np.abs(step).max() < 1e-9:
            break
    theta[1] = max(theta[1], MIN_SLOPE - 1.0)
    return np.asarray(centres + theta @ columns)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-x))
