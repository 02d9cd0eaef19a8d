"""Displays that wait for the slowest input: the indices of their rows, in parts of a step each, the earliest first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class WaitingDisplays:
    """A heap of parts by their earliest display time, ms. To add costs the rows, to take the parts that are due."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, NDArray[np.uint32]]] = []  # earliest display, which part, indices
        self._added = 0  # parts, so that two of one time need not be compared

    def __len__(self) -> int:
        return sum(len(indices) for _, _, indices in self._parts)

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(indices.nbytes for _, _, indices in self._parts)

    def add(self, indices: NDArray[np.integer], display_ms: NDArray[np.int64]) -> None:
        """Let rows wait that were displayed at these times, (B,) each."""
        if len(indices):
            self._added += 1
            heapq.heappush(self._parts, (int(display_ms.min()), self._added, indices.astype(np.uint32)))

    def take(self, until_ms: int) -> Iterator[NDArray[np.uint32]]:
        """Take out the parts that begin at ``until_ms`` or before; what of them is later is to be added again."""
        due = []
        while self._parts and self._parts[0][0] <= until_ms:
            due.append(heapq.heappop(self._parts)[2])
        return iter(due)
