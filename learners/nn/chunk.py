"""What goes into the dense part of DeepFM, and the buffers of one piece of a batch.

Shapes: B rows, E embedded columns, D = dim, K dense inputs, H heads, U table rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from learners.nn.mlp import Mlp

Floats = NDArray[np.float32]


class Inputs(NamedTuple):
    """Rows of a batch: values (U, D + 1), inverse (B, E) int32 into them (negative: missing), dense (B, K)."""

    values: Floats
    inverse: NDArray[np.int32]
    dense: Floats

    def cut(self, rows: slice) -> Inputs:
        """Some of the rows."""
        return Inputs(self.values, self.inverse[rows], self.dense[rows])


class Chunk:
    """Buffers of n rows; ``first`` gives a view of them for fewer rows."""

    def __init__(self, rows: int, width: int, dim: int, mlps: Sequence[Mlp]) -> None:
        self.rows = rows
        self.x, self.grad_x = torch.empty((rows, width)), torch.empty((rows, width))
        self.sums = np.empty((rows, dim), np.float32)
        self.logits, self.grad_logits = torch.empty((len(mlps), rows)), torch.empty((len(mlps), rows))
        self.buffers = [mlp.buffers(rows) for mlp in mlps]

    def first(self, rows: int) -> Chunk:
        """The same memory for the first ``rows`` rows."""
        if rows == self.rows:
            return self
        part = copy(self)
        part.rows = rows
        part.x, part.grad_x, part.sums = self.x[:rows], self.grad_x[:rows], self.sums[:rows]
        part.logits, part.grad_logits = _first(self.logits, rows), _first(self.grad_logits, rows)
        part.buffers = [buffers.first(rows) for buffers in self.buffers]
        return part


def _first(memory: torch.Tensor, rows: int) -> torch.Tensor:
    """(heads, rows) contiguous."""
    heads = len(memory)
    return memory.view(-1)[: heads * rows].view(heads, rows)
