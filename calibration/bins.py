"""Sums of weight and clicks over a fixed grid of logit bins: what a map of labelled rows is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WEIGHT_SCALE: Final = 2**20  # one unit of weight; a weight is kept to the nearest 2**-20
MAX_ROW_WEIGHT: Final = 2.0**20
BIN_LIMIT: Final = 2**62  # two states below it cannot wrap an int64 when they are merged

_MAX_BINS: Final = 2**20
_REACH: Final = 25.0


@dataclass(frozen=True)
class LogitGrid:
    """Equal bins over [lower, upper) in log-odds; logits beyond an end fall into the bin at that end.

    The default bin is 3/256 of a log-odd wide, which moves a probability by less than 0.003. At +-12 log-odds
    a probability is 6e-6 from its end.
    """

    lower: float = -12.0
    upper: float = 12.0
    bins: int = 2048

    def __post_init__(self) -> None:
        if not -_REACH <= self.lower < self.upper <= _REACH:  # false for NaN
            raise ValueError(
                f"logit grid [{self.lower}, {self.upper}) is empty or reaches beyond +-{_REACH:g}, where "
                "probabilities have no bits left: no logit would have a useful bin. Give -12 and 12 for "
                "a start."
            )
        if not 1 <= self.bins <= _MAX_BINS:
            raise ValueError(f"bins={self.bins} is outside 1..{_MAX_BINS}: choose 1024 to 4096.")

    @property
    def width(self) -> float:
        """Width of a bin in log-odds."""
        return (self.upper - self.lower) / self.bins

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) bin boundaries in log-odds."""
        return np.linspace(self.lower, self.upper, self.bins + 1)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """(bins,) middle of each bin in log-odds."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    def index(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
        """(B,) logits -> (B,) bin numbers; the first and the last bin also take what lies beyond them."""
        position = (np.asarray(logits, dtype=np.float64) - self.lower) / self.width
        return np.clip(np.floor(position), 0, self.bins - 1).astype(np.int32)


class BinState:
    """Fixed-point sums of weight (w) and weight x label (wy) per bin.

    Both are int64 in units of 2**-20, so additions commute exactly: states of parallel workers merge to the
    very bits one worker would have. A bin holds 2**62 units, the weight of 4.4e12 rows; the operation that would
    pass that raises OverflowError and changes nothing.
    """

    def __init__(self, grid: LogitGrid | None = None) -> None:
        self.grid = grid or LogitGrid()
        self.w: NDArray[np.int64] = np.zeros(self.grid.bins, dtype=np.int64)
        self.wy: NDArray[np.int64] = np.zeros(self.grid.bins, dtype=np.int64)

    def add(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.bool_],
        weight: NDArray[np.float32] | None = None,
    ) -> None:
        """Count a batch of B rows: (B,) logits, (B,) labels, (B,) weights in [0, 2**20] (1 when None).

        Raises ValueError for a logit that is not finite, a bad weight or unequal lengths; nothing is counted
        then.
        """
        w, wy = self._sums(logits, labels, weight)
        self._put(self.w + w, self.wy + wy)

    def merge(self, other: BinState) -> None:
        """Add the sums of another worker with the same grid."""
        if other.grid != self.grid:
            raise ValueError(
                f"cannot merge bins of {other.grid} into {self.grid}: their bins mean different logits. "
                "Run every worker with the same calibration grid."
            )
        self._put(self.w + other.w, self.wy + other.wy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BinState):
            return NotImplemented
        same_grid = self.grid == other.grid
        return same_grid and bool(np.array_equal(self.w, other.w) and np.array_equal(self.wy, other.wy))

    __hash__ = None  # type: ignore[assignment]  # mutable

    def _sums(
        self, logits: NDArray[np.float32], labels: NDArray[np.bool_], weight: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(bins,) fixed-point w and wy of one batch, after checking it."""
        logits, labels = np.asarray(logits), np.asarray(labels)
        check_rows(logits, labels, weight)
        index, hit = self.grid.index(logits), labels.astype(np.bool_)
        bins = self.grid.bins
        if weight is None:  # counting is exact and several times faster than weighing
            w, wy = np.bincount(index, minlength=bins), np.bincount(index[hit], minlength=bins)
            return w.astype(np.int64) * WEIGHT_SCALE, wy.astype(np.int64) * WEIGHT_SCALE
        units = np.rint(np.asarray(weight, dtype=np.float64) * WEIGHT_SCALE).astype(np.int64)
        if float(units.sum(dtype=np.float64)) >= BIN_LIMIT:
            raise OverflowError(
                f"the weights of one batch sum to {BIN_LIMIT / WEIGHT_SCALE:g} or more: it was not counted. "
                "Split the batch or scale the weights down."
            )
        w, wy = np.zeros(bins, dtype=np.int64), np.zeros(bins, dtype=np.int64)
        np.add.at(w, index, units)
        np.add.at(wy, index[hit], units[hit])
        return w, wy

    def _put(self, w: NDArray[np.int64], wy: NDArray[np.int64]) -> None:
        """Take new sums, or refuse them whole."""
        fullest = max(int(w.max()), int(wy.max()))
        if fullest >= BIN_LIMIT:
            raise OverflowError(
                f"a calibration bin would hold weight {fullest / WEIGHT_SCALE:g}, the limit is "
                f"{BIN_LIMIT / WEIGHT_SCALE:g}: sums would wrap soon. Scale the weights "
                "down."
            )
        self.w, self.wy = w, wy


def check_rows(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.bool_], weight: NDArray[np.floating[Any]] | None
) -> None:
    """Raise ValueError, with the first bad row, unless B finite logits have B labels and weights."""
    if logits.ndim != 1 or labels.shape != logits.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must be 1-d of one length: pair them first.")
    if not np.isfinite(logits).all():
        row = int(np.argmin(np.isfinite(logits)))
        raise ValueError(
            f"logit {logits[row]} at row {row} is not finite: it has no bin and the batch was not counted. "
            "Drop the row, or look for a model that diverged."
        )
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        row = int(np.argmin(np.isin(labels, (0, 1))))
        raise ValueError(
            f"label {labels[row]} at row {row} is not 0 or 1: the batch was not counted. Pass clicks as booleans."
        )
    if weight is None:
        return
    weight = np.asarray(weight)
    if weight.shape != logits.shape:
        raise ValueError(f"weight {weight.shape} must match logits {logits.shape}: give one weight a row, or None.")
    good = (weight >= 0) & (weight <= MAX_ROW_WEIGHT)  # false for NaN
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"weight {weight[row]} at row {row} is outside [0, {MAX_ROW_WEIGHT:g}]: the batch was not "
            "counted. Clip importance weights before."
        )
