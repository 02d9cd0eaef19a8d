"""How far probabilities can be trusted: O/E, the reliability table, expected calibration error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ReliabilityBin(NamedTuple):
    """Rows of about equal probability, and how often they were clicked."""

    rows: int
    mean_p: float
    observed_rate: float
    observed_over_expected: float  # NaN where nothing was expected and nothing came


def observed_over_expected(
    labels: NDArray[np.bool_], p: NDArray[np.floating[Any]], weight: NDArray[np.floating[Any]] | None = None
) -> float:
    """Clicks over the sum of probabilities: above 1 the model promises too little, below 1 too much.

    labels, p, weight : (B,); p in [0, 1]. NaN without rows or where 0 of 0 were clicked, inf where 0 were
    promised.
    """
    observed, expected = _paired(labels, p)
    w = np.ones(len(expected)) if weight is None else np.asarray(weight, dtype=np.float64)
    if w.shape != expected.shape:
        raise ValueError(f"weight {w.shape} must match p {expected.shape}: give one weight a row, or None.")
    return _ratio(float(w @ observed), float(w @ expected))


def reliability_table(labels: NDArray[np.bool_], p: NDArray[np.floating[Any]], bins: int = 10) -> list[ReliabilityBin]:
    """The rows cut by quantiles of p into `bins` groups, lowest first.

    Equal probabilities stay in one group, so that the table does not depend on the order of the rows; where
    they fill whole groups, fewer come back. labels, p : (B,); p in [0, 1].
    """
    clicked, promised = _paired(labels, p)
    if bins < 1:
        raise ValueError(f"bins={bins} must be 1 or more: there would be no table. 10 is customary.")
    if len(promised) == 0:
        return []
    edges = np.unique(np.quantile(promised, np.arange(1, bins) / bins, method="inverted_cdf"))
    group = np.searchsorted(edges, promised, side="left")
    count = np.bincount(group)
    expected, observed = np.bincount(group, weights=promised), np.bincount(group, weights=clicked)
    return [
        ReliabilityBin(int(n), float(e / n), float(o / n), _ratio(float(o), float(e)))
        for n, e, o in zip(count, expected, observed, strict=True)
        if n
    ]


def expected_calibration_error(labels: NDArray[np.bool_], p: NDArray[np.floating[Any]], bins: int = 10) -> float:
    """Mean over rows of |observed rate - mean p| of the row's group in `reliability_table`; NaN without rows.

    Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning (AAAI 2015).
    """
    table = reliability_table(labels, p, bins)
    total = sum(group.rows for group in table)
    if total == 0:
        return float("nan")
    return sum(group.rows * abs(group.observed_rate - group.mean_p) for group in table) / total


def _ratio(observed: float, expected: float) -> float:
    if expected == 0.0:
        return float("inf") if observed > 0 else float("nan")
    return observed / expected


def _paired(labels: NDArray[np.bool_], p: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    observed, expected = np.asarray(labels, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if expected.ndim != 1 or observed.shape != expected.shape:
        raise ValueError(
            f"labels {observed.shape} and p {expected.shape} must be 1-d and of one length: pair them first."
        )
    good = (expected >= 0) & (expected <= 1)  # false for NaN
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"p={expected[row]} at row {row} is outside [0, 1]: not a probability. Pass logits through sigmoid."
        )
    return observed, expected
