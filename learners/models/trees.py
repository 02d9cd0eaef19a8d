"""Gradient-boosted trees refitted daily, and logistic regression on their leaves in between.

X. He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014, section 3: the trees turn
inputs into categories (the leaf of each tree), a linear model over these learns online. Here a leaf's weight starts at
the value that boosting gave it, so that right after a fit the model is the boosted ensemble itself, and then follows
the stream by per-coordinate AdaGrad, the rate that the paper found best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.models.boosting import BoostingConfig, Forest
from learners.models.row_buffer import Remembered, RowBuffer, codes_of
from learners.protocol.batch import Batch, check_widths, checked_batch
from learners.protocol.state_names import prefixed, under

_NEVER = -1
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TreesConfig:
    """When trees are refitted, on how much, and how fast the leaves follow."""

    boosting: BoostingConfig = field(default_factory=BoostingConfig)
    buffer_rows: int = 300_000  # the newest; 4 bytes for each learned id and dense input of a row
    first_fit_rows: int = 10_000  # with fewer there is only an intercept
    refit_every_s: float = _DAY_S
    utc_offset_s: int = 0  # where the local day begins, as in the feature spec
    leaf_rate: float = 0.02  # of AdaGrad, shared out among the trees: a row moves one leaf of every tree
    leaf_epsilon: float = 1.0

    def __post_init__(self) -> None:
        for name in ("buffer_rows", "first_fit_rows", "refit_every_s", "leaf_rate", "leaf_epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive: nothing would ever be fitted.")
        if self.first_fit_rows > self.buffer_rows:
            raise ValueError(
                f"first_fit_rows={self.first_fit_rows} must not exceed buffer_rows={self.buffer_rows}: the buffer "
                "would never hold enough to fit. Raise buffer_rows."
            )


class LeafTrees:
    """Learns leaf weights with every batch, and trees when `advance` crosses the end of a refit period.

    Rows of weight 0 are not remembered. A refit takes tens of seconds, in which the caller waits: 600 trees of 31
    leaves on 300 000 rows. Memory is bounded by the buffer and the trees.
    """

    def __init__(self, config: TreesConfig, shape: ModelShape) -> None:
        self.config, self.shape = config, shape
        self._columns = np.array(shape.embedded, np.intp)
        self._buffer = RowBuffer(config.buffer_rows, len(shape.embedded), shape.dense)
        self._period = _NEVER
        self.forest: Forest | None = None
        self._start()

    def _start(self) -> None:
        """The linear model as it is before any learning: an intercept, then the leaves at their boosted values."""
        leaves = self.forest.leaf_values if self.forest else np.zeros(0)
        self._weights = np.concatenate(([0.0], leaves))
        self._squares = np.zeros_like(self._weights)

    @property
    def fitted(self) -> bool:
        """Whether there are trees yet."""
        return self.forest is not None

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32. Changes nothing."""
        check_widths(rows, self.shape)
        logits: NDArray[np.float32] = self._weights[self._active(rows)].sum(axis=1).astype(np.float32)
        return logits

    def learn_many(self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None) -> None:
        """Remember B rows for the next refit and take one AdaGrad step on the sum of their gradients.

        Raises ValueError for a bad batch; then nothing was learned.
        """
        batch = checked_batch(self.shape, rows, labels, weight)
        active = self._active(batch.rows)
        p = 1 / (1 + np.exp(-self._weights[active].sum(axis=1)))
        error = (p - batch.target) * batch.weight
        gradient = np.bincount(active.ravel(), np.repeat(error, active.shape[1]), len(self._weights))
        self._squares += gradient * gradient
        scale = self.config.leaf_epsilon + np.sqrt(self._squares)
        self._weights -= self.config.leaf_rate / active.shape[1] * gradient / scale
        self._remember(batch.where(batch.weight > 0))

    def advance(self, event_ms: int) -> None:
        """Refit when a refit period of local time has ended and the buffer holds enough of both labels."""
        period = int((event_ms / 1000 + self.config.utc_offset_s) // self.config.refit_every_s)
        if period > self._period:
            self._period = period
            self._refit()

    def _refit(self) -> None:
        rows = self._buffer.rows()
        if len(rows.target) >= self.config.first_fit_rows and rows.target.min() < rows.target.max():
            self.forest = Forest.fit(self.config.boosting, rows)
            self._start()

    def _active(self, rows: Rows) -> NDArray[np.int64]:
        """The coordinates (B, 1 + T) that are 1 in each row: the intercept, then a leaf of every tree."""
        if self.forest is None:
            return np.zeros((len(rows.ids), 1), np.int64)
        leaves = self.forest.leaves(codes_of(rows.ids[:, self._columns]), rows.dense)
        return np.concatenate((np.zeros((len(leaves), 1), np.int64), leaves + 1), axis=1)

    def _remember(self, batch: Batch) -> None:
        codes = codes_of(batch.ids[:, self._columns])
        self._buffer.add(Remembered(codes, batch.dense, batch.target, batch.weight))

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays under ``trees.``: the buffer, the linear model, the period, and the trees if there are any."""
        forest = self.forest.state() if self.forest else {}
        return {
            "trees.period": np.array([self._period], np.int64),
            "trees.weights": self._weights.copy(),
            "trees.squares": self._squares.copy(),
            **prefixed("trees.buffer.", self._buffer.state()),
            **prefixed("trees.forest.", forest),
        }

    @classmethod
    def from_state(cls, config: TreesConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """The learner that ``state`` was taken from. Raises ValueError for one of another size or without arrays."""
        learner = cls(config, shape)
        try:
            learner._buffer.restore(under("trees.buffer.", state))
            forest = under("trees.forest.", state)
            if forest:
                learner.forest = Forest.from_state(config.boosting, forest)
            learner._start()
            weights, squares, period = state["trees.weights"], state["trees.squares"], state["trees.period"]
        except KeyError as error:
            raise ValueError(f"a state without {error} is none of LeafTrees: it cannot be continued.") from error
        if weights.shape != learner._weights.shape or squares.shape != learner._squares.shape:
            raise ValueError(
                f"a state of {weights.shape} leaf weights does not fit trees with {learner._weights.shape}: it came "
                "from another config. Use the config that it was learned with."
            )
        learner._weights, learner._squares, learner._period = weights.copy(), squares.copy(), int(period[0])
        return learner
