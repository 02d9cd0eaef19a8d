"""What every learner offers, whatever is inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.features.shape import ModelShape

State = Mapping[str, NDArray[Any]]
"""A learner's state: arrays by name."""


class Learner(Protocol):
    """Scores a batch, then learns from it; never the other way round.

    A learner is made from its config and a `ModelShape`. The same calls give the same bits; it holds no clock and no
    unseeded randomness, reads its inputs only during the call, and hands out copies.
    """

    def __init__(self, config: Any, shape: ModelShape) -> None: ...

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32. Changes nothing. Raises ValueError for widths that are not the feature spec's."""
        ...

    def learn_many(self, rows: Rows, labels: NDArray[np.bool_], weight: NDArray[np.float32] | None = None) -> None:
        """One update step on B rows; what row i teaches is scaled by ``weight[i]`` (default 1).

        Raises
        ------
        ValueError
            An empty batch, wrong widths or lengths, labels outside {0, 1}, dense inputs or weights that are not
            finite, negative weights. The learner is untouched.
        """
        ...

    def advance(self, event_ms: int) -> None:
        """Event time has moved on to ``event_ms``, never backwards: what is forgotten or refitted by age depends on it.

        It is called before a learning step, with the same times in the first run and when a log is learned again.
        """
        return

    def state(self) -> State:
        """Everything that `from_state` needs to continue bit-equal: arrays only, copies."""
        ...

    @classmethod
    def from_state(cls, config: Any, shape: ModelShape, state: State) -> Self:
        """The learner that ``state`` was taken from. Raises ValueError for one of another config or shape."""
        ...


class AdditiveLearner(Learner, Protocol):
    """A learner that is moved by gradients: it learns the two terms of the log loss apart, each when it comes."""

    def learn_terms(self, rows: Rows, terms: Terms) -> None:
        """One update step on B rows, of which each pays the terms that ``terms`` says, see `learners.examples.terms`.

        ``learn_many`` is ``learn_terms`` of `Terms.of_labels`. Raises ValueError as it does; the learner is untouched.
        """
        ...
