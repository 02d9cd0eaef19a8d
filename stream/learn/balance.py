"""What displays weigh while the level is left to the filter: in sum, as many clicks are expected as come.

Every click pulls all its ids up and every display pushes all of its down a little, so that each surplus of clicks, by
chance or because displays teach before their clicks can have come, moves the level of the whole model. The level has
its own filter (`stream.learn.click_level`), which knows about chance and delays. So displays weigh

    w = 1 + D / M,    D = Σ clicks − Σ w·p    of all that was learned,

within [0, 4]: D never gets far from 0, the sums cancel, and what is learned is which rows are clicked rather than
others, the likelihood of where clicks fall given how many there are (conditional likelihood, D. R. Cox, "Analysis of
Binary Data", 1970, section 4.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.logistic import sigmoid
from learners.examples.terms import Terms

_CLICKS = 50.0  # M
_MOST_WEIGHT = 4.0


class Balance:
    """The weight of the displays that are learned next. ``state`` : of a snapshot, to go on after it."""

    def __init__(self, state: Mapping[str, NDArray[Any]] | None = None) -> None:
        self._owed = float(state["owed"][0]) if state else 0.0

    @property
    def weight(self) -> float:
        """Above 1 while more clicks have come than displays paid for."""
        return min(max(1.0 + self._owed / _CLICKS, 0.0), _MOST_WEIGHT)

    def learned(self, logits: NDArray[np.float32], terms: Terms) -> None:
        """Count a batch in that was learned at this weight.

        ``logits`` are those before learning, ``terms`` the click head's with displays of weight one, all (B,).
        """
        expected = float(sigmoid(logits) @ terms.exposure.astype(np.float64))
        self._owed += float(terms.event.sum(dtype=np.float64)) - self.weight * expected

    def state(self) -> dict[str, NDArray[Any]]:
        """What a restart needs."""
        return {"owed": np.array([self._owed])}
