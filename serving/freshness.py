"""Freshness: how old a click is when the first prediction that knows it is made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.quantiles import NewestValues


class Freshness:
    """Click produced (broker's wall clock) -> first prediction by a version that learned it, in seconds.

    A click waits from the swap to its version until somebody is scored: a version that nobody used is not fresh.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self.seconds = NewestValues(capacity)
        self._waiting: list[NDArray[np.int64]] = []

    @property
    def waiting(self) -> int:
        """Clicks that are in the model but in no prediction yet."""
        return sum(map(len, self._waiting))

    def swapped(self, clicks_produced_ms: NDArray[np.int64]) -> None:
        """A version that learned (C,) clicks went live; 0 stands for a click whose time is not known."""
        known = clicks_produced_ms[clicks_produced_ms > 0]
        if len(known):
            self._waiting.append(known)

    def predicted(self, now_ms: int) -> NDArray[np.float64]:
        """A prediction was made: (C,) the ages in seconds of the clicks first used by it, also kept in `seconds`."""
        if not self._waiting:
            return np.zeros(0)
        ages = (now_ms - np.concatenate(self._waiting)) / 1000.0
        self._waiting.clear()
        self.seconds.observe(ages)
        return np.asarray(ages)
