"""Processes that train one base together: each has the whole model and computes the gradients of its share of a batch.

Every process reads the same examples, admits the keys of the whole batch and takes the same step on the summed
gradients, so that the replicas stay bit-equal without ever sending weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray


class ProcessGroup(Protocol):
    """One process's view of all of them."""

    @property
    def rank(self) -> int:
        """Its own number, from 0."""
        ...

    @property
    def size(self) -> int:
        """The number of processes."""
        ...

    def all_reduce(self, array: NDArray[np.float32]) -> None:
        """Replace the array, of equal shape everywhere, by the sum over all processes, bit-equal in each."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank; anything that pickles."""
        ...


def share_of(group: ProcessGroup, rows: int) -> slice:
    """The rows of a batch that fall to this process; shares differ by at most one row."""
    return slice(group.rank * rows // group.size, (group.rank + 1) * rows // group.size)


class SingleProcess:
    """A single process."""

    rank, size = 0, 1

    def all_reduce(self, array: NDArray[np.float32]) -> None:
        """Nothing to add."""

    def all_gather(self, value: Any) -> list[Any]:
        """Only its own."""
        return [value]


class GlooGroup:
    """Processes that torchrun started, over gloo: gradients lie in host memory, where the table is."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def all_reduce(self, array: NDArray[np.float32]) -> None:
        """All-reduce: every chunk is summed in one place and sent around, so all get the same bits."""
        dist.all_reduce(torch.from_numpy(array))

    def all_gather(self, value: Any) -> list[Any]:
        """All-gather of pickled objects."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The processes that torchrun started (it sets WORLD_SIZE), else this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SingleProcess()
        return
    dist.init_process_group("gloo")
    try:
        yield GlooGroup()
    finally:
        dist.destroy_process_group()
