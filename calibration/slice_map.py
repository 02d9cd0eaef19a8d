"""The calibration map in use: a curve over the logit and an offset for each slice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.curve import CalibrationMap
from calibration.logistic import sigmoid
from calibration.slices import SlicePlan


class RowColumns(Protocol):
    """What slices are read from: B rows as learners see them."""

    @property
    def ids(self) -> NDArray[np.uint64]: ...  # noqa: D102
    @property
    def dense(self) -> NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class SliceMap:
    """log-odds = curve(logit) + offsets of the row's nodes + shift. Within a path it rises strictly.

    nodes : (N,) int64, ascending, of `SlicePlan.nodes`. offsets : (N,) float64 log-odds, each against its parent.
    shift : log-odds that keep the level of the newest displays what the model says: the map corrects shape only.
    """

    plan: SlicePlan = field(default_factory=SlicePlan)
    curve: CalibrationMap = field(default_factory=CalibrationMap.identity)
    nodes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    offsets: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    shift: float = 0.0
    version: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether it leaves sigmoid(logit) as it is."""
        at = self.curve.logits
        return not len(self.nodes) and self.shift == 0.0 and len(at) == 1 and bool(at[0] == self.curve.log_odds[0])

    def log_odds_of(
        self, logits: NDArray[np.floating[Any]], paths: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """(B,) raw logits of rows with (B,) paths -> (B,) calibrated log-odds, float64."""
        found = self.curve.log_odds_of(logits) + self.shift
        return found if paths is None or not len(self.nodes) else found + self.offsets_of(paths)

    def offsets_of(self, paths: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B,) sums of the offsets of the nodes that paths go through; a node never seen adds nothing."""
        total = np.zeros(paths.shape)
        if not len(self.nodes):
            return total
        for depth in range(1, self.plan.depth + 1):
            node = self.plan.nodes(paths, depth)
            at = np.minimum(np.searchsorted(self.nodes, node), len(self.nodes) - 1)
            total += np.where(self.nodes[at] == node, self.offsets[at], 0.0)
        return total

    def apply(self, logits: NDArray[np.floating[Any]], rows: RowColumns | None = None) -> NDArray[np.float32]:
        """(B,) raw logits of B rows -> (B,) calibrated probabilities, float32.

        Without rows the slices are left out. Infinite logits stay infinite and NaN stays NaN.
        """
        if self.is_identity:
            return sigmoid(logits).astype(np.float32)
        paths = self.plan.paths(rows.ids, rows.dense) if rows is not None and len(self.nodes) else None
        return sigmoid(self.log_odds_of(logits, paths)).astype(np.float32)
