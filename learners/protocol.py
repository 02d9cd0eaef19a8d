"""What every learner offers, whatever is inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.rows import Rows


class Learner(Protocol):
    """Scores a batch, then learns from it; never the other way round."""

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32. Changes nothing."""
        ...

    def learn_many(self, rows: Rows, labels: NDArray[np.bool_], weight: NDArray[np.float32]) -> None:
        """One update step on B rows; the gradient of row i is scaled by ``weight[i]``."""
        ...

    def state(self) -> Mapping[str, NDArray[Any]]:
        """Everything that ``from_state`` needs to continue bit-equal: arrays only."""
        ...
