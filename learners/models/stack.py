"""Trees refitted daily beside an online DeepFM, their logits weighed online.

D. H. Wolpert, "Stacked Generalization", Neural Networks 5, 1992, with the learning of He et al. 2014 in time. The trees
bring what is known of numbers and their thresholds over days, the DeepFM what is known of ids up to the last batch. On
KuaiRand their mean is ahead of either; the trees' logit as one more dense input of the DeepFM is no better than the
DeepFM alone, which follows it instead of adding to it. A third logit, of FTRL or DCN-v2, changes nothing: from the same
inputs these err as the DeepFM does.

The trees learn labels, so the stack learns rows whose labels are known, and not the two terms of the loss apart.
The weights learn from the logits that the two give before they learn the row, as they are when it is served, so no
row's label leaks into its own inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.models.trees import LeafTrees, TreesConfig
from learners.protocol.batch import check_widths, checked_batch
from learners.protocol.state_names import prefixed, under

_MAX_LOGIT = np.float32(8.0)  # beyond it is a leaf without clicks, not knowledge


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """The configs of the two, and how fast their weights move."""

    trees: TreesConfig = field(default_factory=TreesConfig)
    deepfm: DeepFMConfig = field(default_factory=DeepFMConfig)
    rate: float = 0.02  # of AdaGrad on the two weights and the intercept
    epsilon: float = 30.0  # the first batches move the weights by less than a hundredth

    def __post_init__(self) -> None:
        for name in ("rate", "epsilon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be positive and finite: the weights could not learn. Raise it.")


class Stack:
    """Logit = intercept + weights · (DeepFM's logit, the trees' logit); the weights start at one half each.

    Until the trees are fitted for the first time it is the DeepFM alone.
    """

    def __init__(self, config: StackConfig, shape: ModelShape) -> None:
        self.config, self.shape = config, shape
        self.trees = LeafTrees(config.trees, shape)
        self.model = DeepFM(config.deepfm, shape)
        self._weights = np.array([0.0, 0.5, 0.5])
        self._squares = np.zeros(3)

    @property
    def weights(self) -> NDArray[np.float64]:
        """The intercept, the DeepFM's weight and the trees', (3,): a copy."""
        return self._weights.copy()

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32. Changes nothing."""
        check_widths(rows, self.shape)
        if not self.trees.fitted:
            return self.model.predict_many(rows)
        logits: NDArray[np.float32] = (self._inputs(rows) * self._weights).sum(axis=1).astype(np.float32)
        return logits

    def learn_many(self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None) -> None:
        """One step of each. Raises ValueError for a bad batch and DivergenceError; then nothing was learned."""
        batch = checked_batch(self.shape, rows, labels, weight)
        inputs = self._inputs(rows) if self.trees.fitted else None
        self.model.learn_many(rows, labels, weight)
        if inputs is not None:
            p = 1 / (1 + np.exp(-(inputs * self._weights).sum(axis=1)))
            gradient = (((p - batch.target) * batch.weight)[:, None] * inputs).sum(axis=0)
            self._squares += gradient * gradient
            self._weights -= self.config.rate * gradient / (self.config.epsilon + np.sqrt(self._squares))
        self.trees.learn_many(rows, labels, weight)

    def advance(self, event_ms: int) -> None:
        """Refit the trees when their period ends; let the DeepFM forget."""
        self.trees.advance(event_ms)
        self.model.advance(event_ms)

    def _inputs(self, rows: Rows) -> NDArray[np.float32]:
        """What the weights weigh, (B, 3)."""
        logits = np.stack((self.model.predict_many(rows), self.trees.predict_many(rows)), axis=1)
        return np.concatenate((np.ones((len(logits), 1), np.float32), np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)), axis=1)

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays under ``trees.``, ``deepfm.`` and ``stack.``."""
        return {
            **self.trees.state(),
            **prefixed("deepfm.", self.model.state()),
            "stack.weights": self._weights.copy(),
            "stack.squares": self._squares.copy(),
        }

    @classmethod
    def from_state(cls, config: StackConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """The learner that ``state`` was taken from. Raises ValueError for one of another config or shape."""
        stack = cls(config, shape)
        try:
            weights, squares = state["stack.weights"], state["stack.squares"]
        except KeyError as error:
            raise ValueError(f"a state without {error} is none of Stack: it cannot be continued.") from error
        stack.trees = LeafTrees.from_state(config.trees, shape, state)
        stack.model = DeepFM.from_state(config.deepfm, shape, under("deepfm.", state))
        stack._weights, stack._squares = weights.copy(), squares.copy()
        return stack
