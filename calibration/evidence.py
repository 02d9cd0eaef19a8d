"""What the calibration map is fitted to: clicks and expected clicks by cohort of display, slice and logit.

A map must not hold the level of versions that have moved since: after the click rate changes the model is right in
minutes, and a map fitted to the level of before would be wrong until it forgets. So every cohort's expected clicks are
scaled by the cohort's own O/E, over all slices and logits, before they count: what is left is *where* the clicks came,
among displays of one moment. Displays of one moment are of one age, too: what has not come yet cancels, as far as
delays do not depend on the logit.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.bins import WEIGHT_SCALE
from calibration.cohorts import CohortTable
from calibration.logistic import sigmoid
from calibration.slices import SlicePlan

LOWEST: Final = -12.0
BINS_PER_LOG_ODD: Final = 4
BINS: Final = 24 * BINS_PER_LOG_ODD
CENTRES: Final = LOWEST + (np.arange(BINS) + 0.5) / BINS_PER_LOG_ODD
CENTRES.flags.writeable = False
P_CENTRES: Final = sigmoid(CENTRES)
P_CENTRES.flags.writeable = False
_EXPECTED, _CLICKS = 0, 1
KEPT_HALF_LIVES: Final = 6.0


class Weighed(NamedTuple):
    """Evidence of N paths, ready for a fit."""

    paths: NDArray[np.int64]  # (N,) ascending
    expected: NDArray[np.float64]  # (N, BINS) expected clicks at the model's logits, at each cohort's own level
    clicks: NDArray[np.float64]  # (N, BINS)
    recent: NDArray[np.float64]  # (N, BINS) expected clicks of the newest displays, not scaled


def bins_of(logits: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """(B,) bins, a quarter of a log-odd wide; what lies beyond +-12 goes to the end bins."""
    at = np.floor((np.asarray(logits, np.float64) - LOWEST) * BINS_PER_LOG_ODD)
    return np.clip(at, 0, BINS - 1).astype(np.int64)


def added(at: NDArray[np.intp], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(size,) sums of (M,) values at (M,) cells."""
    return np.bincount(at, values, size).astype(np.float64)


class MapEvidence:
    """Sums of one examples partition, see the module; they add up over partitions to the bit."""

    def __init__(self, table: CohortTable | None = None) -> None:
        self.table = table or CohortTable(2)

    def add_exposures(self, ts_ms: NDArray[np.int64], paths: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Displays: each expects σ(logit) clicks."""
        units = np.rint(sigmoid(logits) * WEIGHT_SCALE).astype(np.int64)
        self.table.add(ts_ms, paths, bins_of(logits), np.stack([units, np.zeros_like(units)], axis=1))

    def add_clicks(self, ts_ms: NDArray[np.int64], paths: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Clicks, by the time, path and logit of their display."""
        ones = np.ones(len(ts_ms), np.int64)
        self.table.add(ts_ms, paths, bins_of(logits), np.stack([np.zeros_like(ones), ones], axis=1))

    def forget(self, half_life_clicks: float) -> None:
        """Drop cohorts that so many clicks came after that they weigh nothing."""
        ends, clicks = self._newest_first()
        after = np.cumsum(clicks) - clicks
        old = after > KEPT_HALF_LIVES * half_life_clicks
        if old.any():
            self.table.drop_before(int(ends[np.argmax(old)]))

    def merged_with(self, others: list[MapEvidence]) -> MapEvidence:
        """The evidence of several partitions together."""
        total = MapEvidence(CohortTable(2))
        for one in (self, *others):
            total.table.merge(one.table)
        return total

    def weighed(self, half_life_clicks: float, ripe_ms: float, *, recent_ms: int = 30_000) -> Weighed:
        """Evidence with a memory in clicks.

        Parameters
        ----------
        half_life_clicks : a cohort that so many clicks came after weighs one half.
        ripe_ms : cohorts younger than this do not count: they are all noise.
        recent_ms : span of the newest displays.
        """
        table = self.table
        starts, bins, sums = table.starts(), table.bins(), table.sums()
        cohort, of_cohort = _runs(starts)
        paths, of_path = np.unique(table.paths(), return_inverse=True)
        expected = sums[:, _EXPECTED] / WEIGHT_SCALE
        clicks = sums[:, _CLICKS].astype(np.float64)
        by_cohort = added(of_cohort, clicks, len(cohort))
        promised = added(of_cohort, expected, len(cohort))
        ripe = starts[cohort] + table.lengths()[cohort] + ripe_ms <= table.now_ms if len(cohort) else cohort > 0
        counted = by_cohort * ripe
        after = np.cumsum(counted[::-1])[::-1] - counted
        weight = 0.5 ** (after / half_life_clicks) * ripe
        level = np.divide(by_cohort, promised, out=np.zeros_like(promised), where=promised > 0)
        cell, size = of_path * BINS + bins, len(paths) * BINS
        newest = starts > (starts[-1] - recent_ms) if len(starts) else starts > 0
        shape = (len(paths), BINS)
        return Weighed(
            paths,
            added(cell, expected * (weight * level)[of_cohort], size).reshape(shape),
            added(cell, clicks * (weight * (promised > 0))[of_cohort], size).reshape(shape),
            added(cell, expected * newest, size).reshape(shape),
        )

    def span(self, from_ms: int, until_ms: int) -> Weighed:
        """The cohorts that began in a span of time, each at its own level."""
        starts = self.table.starts()
        one = slice(*np.searchsorted(starts, [from_ms, until_ms]).tolist())
        bins, sums = self.table.bins()[one], self.table.sums()[one]
        cohort, of_cohort = _runs(starts[one])
        paths, of_path = np.unique(self.table.paths()[one], return_inverse=True)
        expected, clicks = sums[:, _EXPECTED] / WEIGHT_SCALE, sums[:, _CLICKS].astype(np.float64)
        by_cohort = added(of_cohort, clicks, len(cohort))
        promised = added(of_cohort, expected, len(cohort))
        level = np.divide(by_cohort, promised, out=np.zeros_like(promised), where=promised > 0)
        cell, size, shape = of_path * BINS + bins, len(paths) * BINS, (len(paths), BINS)
        return Weighed(
            paths,
            added(cell, expected * level[of_cohort], size).reshape(shape),
            added(cell, clicks * (promised > 0)[of_cohort], size).reshape(shape),
            added(cell, expected, size).reshape(shape),
        )

    def expected(self, since_ms: int) -> float:
        """Expected clicks of displays since a time."""
        first = int(np.searchsorted(self.table.starts(), since_ms))
        return float(self.table.sums()[first:, _EXPECTED].sum()) / WEIGHT_SCALE

    def bound_paths(self, plan: SlicePlan) -> None:
        """Count the paths that have the fewest expected clicks as one, "other", where there are too many."""
        paths, of_path = np.unique(self.table.paths(), return_inverse=True)
        if len(paths) <= plan.most_paths:
            return
        expected = added(of_path, self.table.sums()[:, _EXPECTED].astype(np.float64), len(paths))
        few = paths[np.argsort(-expected, kind="stable")[plan.most_paths - 1 :]]
        self.table.rename_paths(few, plan.other)

    def clicks(self) -> int:
        """Clicks in the evidence."""
        return int(self.table.sums()[:, _CLICKS].sum())

    def _newest_first(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ends of cohorts and their clicks."""
        starts, clicks = self.table.starts(), self.table.sums()[:, _CLICKS]
        cohort, _ = _runs(starts)
        if not len(cohort):
            return cohort, cohort
        ends = (starts + self.table.lengths())[cohort]
        return ends[::-1], np.add.reduceat(clicks, cohort)[::-1]


def _runs(starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of equal numbers begin, and the run of each."""
    first = np.append(True, np.diff(starts) != 0)[: len(starts)]
    return np.flatnonzero(first), np.cumsum(first) - 1
