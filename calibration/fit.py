"""Fits the map of shape and slices to relative evidence, and weighs what it would have gained."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.curve import CalibrationMap
from calibration.evidence import CENTRES, P_CENTRES, Weighed, added
from calibration.isotonic import PRIOR_WEIGHT, fit_bins
from calibration.logistic import logit, sigmoid
from calibration.slice_map import SliceMap
from calibration.slices import SlicePlan

SLICE_PRIOR_CLICKS: Final = 200.0  # of a slice's offset: slices of a sound model differ by about 7 %
_STRONGEST_PRIOR_CLICKS: Final = 20_000.0
_NEWTON_STEPS: Final = 4


def fit_slice_map(
    evidence: Weighed,
    plan: SlicePlan,
    *,
    prior_weight: float = PRIOR_WEIGHT,
    slice_prior_clicks: float = SLICE_PRIOR_CLICKS,
    version: int = 0,
) -> SliceMap:
    """Offsets of slices first, then the curve over what they leave; the level stays the model's.

    A node's offset is that of the Gamma-Poisson posterior mean against its parent, (O + k) / (E + k): k is the prior
    weight in clicks, and more where the nodes of a depth differ by less than it says (empirical Bayes by moments;
    Efron and Morris 1973). The curve is `fit_bins`: isotonic around Platt's line.
    """
    if not evidence.clicks.any():
        return SliceMap(plan, version=version)
    nodes, offsets, total = _offsets(evidence, plan, slice_prior_clicks)
    scaled = _at(evidence.expected, total)
    curve = fit_bins(CENTRES, scaled.sum(axis=0) / P_CENTRES, evidence.clicks.sum(axis=0), prior_weight=prior_weight)
    return levelled(SliceMap(plan, curve, nodes, offsets, version=version), evidence)


def levelled(curve: SliceMap, evidence: Weighed) -> SliceMap:
    """The same map with the shift that leaves Σp of the newest displays as the model says."""
    if curve.is_identity or not evidence.recent.any():
        return curve
    log_odds = curve.curve.log_odds_of(CENTRES) + curve.offsets_of(evidence.paths)[:, None]
    return replace(curve, shift=_level_shift(log_odds, evidence.recent))


def _level_shift(log_odds: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """S such that Σ n σ(log_odds + s) = Σ n σ(centre), by Newton; n displays expect ``expected``, (N, BINS)."""
    displays, wanted, shift = expected / P_CENTRES, float(expected.sum()), 0.0
    for _ in range(_NEWTON_STEPS):
        p = sigmoid(log_odds + shift)
        slope = float(np.sum(displays * p * (1.0 - p)))
        if slope <= 0:
            return 0.0
        shift += min(max((wanted - float(np.sum(displays * p))) / slope, -1.0), 1.0)
    return shift


def _at(expected: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected clicks when paths have offsets, (N,)."""
    return expected * (sigmoid(CENTRES + offsets[:, None]) / P_CENTRES)


def _offsets(
    evidence: Weighed, plan: SlicePlan, prior_clicks: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Nodes, their offsets against their parents, and the sum of the offsets of each path, (N,)."""
    total = np.zeros(len(evidence.paths))
    all_nodes: list[NDArray[np.int64]] = []
    all_offsets: list[NDArray[np.float64]] = []
    clicks: NDArray[np.float64] = evidence.clicks.sum(axis=1)
    for depth in range(1, plan.depth + 1):
        scaled = _at(evidence.expected, total)
        nodes, of_path = np.unique(plan.nodes(evidence.paths, depth), return_inverse=True)
        found = added(of_path, clicks, len(nodes))
        expected = added(of_path, scaled.sum(axis=1), len(nodes))
        displays = added(of_path, (evidence.expected / P_CENTRES).sum(axis=1), len(nodes))
        prior = _prior_clicks(found, expected, prior_clicks)
        rate = np.clip(expected / np.maximum(displays, 1e-9), 1e-9, 0.98)
        ratio = (found + prior) / (expected + prior)
        offsets = logit(np.clip(rate * ratio, 1e-12, 0.99)) - logit(rate)
        total = total + offsets[of_path]
        all_nodes.append(nodes)
        all_offsets.append(offsets)
    if not all_nodes:
        return np.zeros(0, np.int64), np.zeros(0), total
    return np.concatenate(all_nodes), np.concatenate(all_offsets), total


def _prior_clicks(found: NDArray[np.float64], expected: NDArray[np.float64], least: float) -> float:
    """Prior weight of the nodes of a depth: one over the variance of their true ratios, at least ``least``."""
    square = float(np.sum(expected**2))
    if square <= 0:
        return least
    variance = float(np.sum((found - expected) ** 2 - expected)) / square
    return min(max(least, 1.0 / max(variance, 1e-9)), _STRONGEST_PRIOR_CLICKS)


class Gain(NamedTuple):
    """What a map would have gained in log loss on a cohort, in nats, level apart; positive is better than no map."""

    paths: NDArray[np.int64]  # (N,)
    offsets: NDArray[np.float64]  # (N,) of the slices' offsets against the raw logit
    curve: float  # of the curve on top of them
    clicks: float


def gain_of(candidate: SliceMap, cohort: Weighed) -> Gain:
    """Log loss of no map less that of ``candidate`` on a cohort that came after what it was fitted to.

    Additive: a click pays −z, a display softplus(z). Displays are scaled to the cohort's own level, so that what has
    not come yet, and a level that the model has not learned yet, count for no map and for none against it.
    """
    offsets = candidate.offsets_of(cohort.paths)[:, None]
    sliced = CENTRES + offsets
    sliced = sliced + _level_shift(sliced, cohort.expected)
    curved = candidate.curve.log_odds_of(CENTRES) + offsets
    curved = curved + _level_shift(curved, cohort.expected)
    before = _likelihood(np.broadcast_to(CENTRES, sliced.shape), cohort)
    with_offsets = _likelihood(sliced, cohort)
    gained = (with_offsets - before).sum(axis=1)
    return Gain(cohort.paths, gained, float((_likelihood(curved, cohort) - with_offsets).sum()), cohort.clicks.sum())


def _likelihood(log_odds: NDArray[np.float64], cohort: Weighed) -> NDArray[np.float64]:
    """(N, BINS) log-likelihood of a cohort's displays and clicks."""
    return cohort.clicks * log_odds - cohort.expected / P_CENTRES * np.logaddexp(0.0, log_odds)


def gated(candidate: SliceMap, open_nodes: NDArray[np.bool_], *, curve_open: bool) -> SliceMap:
    """The map without what has not proved itself: nodes that are not open, and the curve."""
    curve = candidate.curve if curve_open else CalibrationMap.identity()
    return replace(candidate, curve=curve, nodes=candidate.nodes[open_nodes], offsets=candidate.offsets[open_nodes])
