"""The logistic function and its inverse, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sigmoid(log_odds: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-odds -> probability; right to the last bits in both tails, 0 and 1 at the infinities."""
    with np.errstate(over="ignore"):  # exp(large) is inf, and 1 / inf the right 0
        return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(log_odds, dtype=np.float64))))


def logit(p: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probability in (0, 1) -> log-odds; 0 and 1 give the infinities."""
    p = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p) - np.log1p(-p))
