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

from learners.few_values import FewValues
from learners.mlp import Mlp

Floats = NDArray[np.float32]


class Inputs(NamedTuple):
    """Rows of a batch: values (U, D + 1), inverse (B, E) int32 into them (negative: missing), dense (B, K).

    few : columns whose values are few, if they are looked up by value: then these columns are not in ``inverse``.
    """

    values: Floats
    inverse: NDArray[np.int32]
    dense: Floats
    few: FewValues | None = None

    def cut(self, rows: slice) -> Inputs:
        """Some of the rows."""
        few = None if self.few is None else self.few.cut(rows)
        return Inputs(self.values, self.inverse[rows], self.dense[rows], few)


class Chunk:
    """Buffers of n rows; ``first`` gives a view of them for fewer rows or inputs of the MLPs."""

    def __init__(self, rows: int, width: int, dim: int, mlps: Sequence[Mlp]) -> None:
        self.rows = rows
        self.x, self.flow = torch.empty((rows, width)), torch.empty((rows, width))
        self.sums, self.looked_up = np.empty((rows, dim), np.float32), torch.empty((rows, dim + 1))
        self.logits, self.errors = torch.empty((len(mlps), rows)), torch.empty((len(mlps), rows))
        self.buffers = [mlp.buffers(rows) for mlp in mlps]

    def first(self, rows: int, width: int) -> Chunk:
        """The same memory for the first ``rows`` rows."""
        part = copy(self)
        heads = len(self.logits)
        part.rows = rows
        part.x, part.flow, part.sums = _first(self.x, rows, width), _first(self.flow, rows, width), self.sums[:rows]
        part.looked_up = self.looked_up[:rows]
        part.logits, part.errors = _first(self.logits, heads, rows), _first(self.errors, heads, rows)
        part.buffers = [buffers.first(rows) for buffers in self.buffers] if rows < self.rows else self.buffers
        return part


def _first(memory: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) contiguous."""
    return memory.view(-1)[: rows * columns].view(rows, columns)
