"""The loops of FTRL-proximal over coordinates; see `learners.models.ftrl`.

The coordinates lie in one vector: 0 is the intercept, 1..K the dense inputs, the rest ids. ``z`` and ``n`` are McMahan
et al.'s, (C,) float64. ``coordinates`` (B, E) holds those of a row's ids, 0 where one is missing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel

LOGIT_BOUND = 35.0  # beyond it e^-|logit| vanishes beside 1


@kernel
def weight_of(z: float, n: float, alpha: float, beta: float, l1: float, l2: float) -> float:
    """The weight that a coordinate's sums stand for: the closed form of line 5 of algorithm 1."""
    if abs(z) <= l1:
        return 0.0
    return -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / alpha + l2)


@kernel
def logits_of(
    coordinates: NDArray[np.int64],
    dense: NDArray[np.float32],
    z: NDArray[np.float64],
    n: NDArray[np.float64],
    rates: tuple[float, float, float, float],
) -> NDArray[np.float32]:
    """Logits, (B,) float32, within ±`LOGIT_BOUND`. ``rates`` : alpha, beta, l1, l2."""
    alpha, beta, l1, l2 = rates
    out = np.empty(len(coordinates), np.float32)
    for row in range(len(coordinates)):
        logit = weight_of(z[0], n[0], alpha, beta, l1, l2)
        for k in range(dense.shape[1]):
            logit += weight_of(z[1 + k], n[1 + k], alpha, beta, l1, l2) * dense[row, k]
        for at in coordinates[row]:
            if at != 0:
                logit += weight_of(z[at], n[at], alpha, beta, l1, l2)
        out[row] = min(max(logit, -LOGIT_BOUND), LOGIT_BOUND)
    return out


@kernel
def learn(
    coordinates: NDArray[np.int64],
    dense: NDArray[np.float32],
    exposure: NDArray[np.float32],
    event: NDArray[np.float32],
    z: NDArray[np.float64],
    n: NDArray[np.float64],
    rates: tuple[float, float, float, float],
) -> None:
    """Row after row, each with the weights that the row before left: algorithm 1 on exposure·softplus(z) − event·z."""
    alpha, beta, l1, l2 = rates
    active = 1 + dense.shape[1] + coordinates.shape[1]
    where, value, current = np.empty(active, np.int64), np.empty(active), np.empty(active)
    for row in range(len(coordinates)):
        count = 0
        for k in range(active):
            at, x = k, 1.0
            if k > dense.shape[1]:
                at = coordinates[row, k - 1 - dense.shape[1]]
            elif k > 0:
                x = float(dense[row, k - 1])
            if x != 0.0 and (at != 0 or k == 0):
                where[count], value[count] = at, x
                count += 1
        logit = 0.0
        for i in range(count):
            at = where[i]
            current[i] = weight_of(z[at], n[at], alpha, beta, l1, l2)
            logit += current[i] * value[i]
        logit = min(max(logit, -LOGIT_BOUND), LOGIT_BOUND)
        p = 1.0 / (1.0 + math.exp(-logit))
        error = (exposure[row] - event[row]) * p + event[row] * (p - 1.0)
        for i in range(count):
            at, gradient = where[i], error * value[i]
            grown = n[at] + gradient * gradient
            z[at] += gradient - (math.sqrt(grown) - math.sqrt(n[at])) / alpha * current[i]
            n[at] = grown
