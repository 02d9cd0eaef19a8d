"""Exact quantiles of the newest observations, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


class NewestValues:
    """The last `capacity` of the values observed; quantiles over them are exact, older values no longer count.

    `count` says how many were ever observed: quantiles cover all of them while it is at most `capacity`.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be at least 1: nothing could be observed. Try 65536.")
        self._ring: NDArray[np.float64] = np.zeros(capacity)
        self.count = 0

    def observe(self, values: ArrayLike) -> None:
        """Add one value or (N,) values, in their order."""
        new = np.atleast_1d(np.asarray(values, dtype=np.float64))
        capacity = len(self._ring)
        kept = new[-capacity:]
        start = self.count + len(new) - len(kept)
        self._ring[(start + np.arange(len(kept))) % capacity] = kept
        self.count += len(new)

    def values(self) -> NDArray[np.float64]:
        """(min(count, capacity),) the values kept, in no particular order."""
        return self._ring[: min(self.count, len(self._ring))].copy()

    def quantiles(self, at: Sequence[float]) -> list[float] | None:
        """The quantiles at each of `at` (0..1), nearest rank from below, or None before the first observation."""
        values = self.values()
        if len(values) == 0:
            return None
        return [float(q) for q in np.quantile(values, at, method="inverted_cdf")]
