"""The gradients of a batch, and the check that a step may be made of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from learners.deepfm.config import DeepFMConfig
from learners.table.answers import Lookup


class DivergenceError(ArithmeticError):
    """The gradient of a batch is not finite; weights and optimiser were left as they were before the batch."""


class Gradients(NamedTuple):
    """Of the summed log loss of some rows of a batch; those of several parts of a batch may be added up.

    lookup : the table rows of the whole batch · table : (U, D + 1) float32, in the order of ``lookup.unique`` ·
    dense : (P,) float32, flat; a buffer that the model's next ``gradients`` overwrites.
    """

    lookup: Lookup
    table: NDArray[np.float32]
    dense: NDArray[np.float32]

    def check_finite(self, config: DeepFMConfig) -> None:
        """Raise DivergenceError unless the squared norms are finite: then so is every square that is accumulated."""
        dense, table = _squared_norm(self.dense), _squared_norm(self.table)
        if not (math.isfinite(dense) and math.isfinite(table)):
            raise DivergenceError(
                f"squared gradient norms {dense:g} (dense) and {table:g} (table) must be finite: a step would make "
                "every weight NaN. Nothing was learned; go back to a snapshot or lower "
                f"vector_rate={config.vector_rate:g}, weight_rate={config.weight_rate:g} and "
                f"dense_rate={config.dense_rate:g}."
            )


def _squared_norm(array: NDArray[np.float32]) -> float:
    flat = torch.from_numpy(array).view(-1)
    return float(torch.dot(flat, flat))
