"""Fewer non-clicks than there were: which are learned, and what each then weighs.

A kept non-click stands for those that were left out and weighs 1 / rate, so that the weighted log loss of the sample is
on average that of all impressions (H. B. McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013,
section 4.3): what minimises it are the log-odds of all impressions, and nothing is left to correct. Data that were
sampled elsewhere, without such weights, need `calibration.sampling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPLITMIX64_STEP = 0x9E3779B97F4A7C15
_TO_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeSampling:
    """How many of the non-clicks are learned: fewer rows, hardly less signal. The default keeps all."""

    negative_rate: float = 1.0  # in (0, 1]

    def __post_init__(self) -> None:
        if not 0 < self.negative_rate <= 1:
            raise ValueError(
                f"negative_rate={self.negative_rate} must lie in (0, 1]: it is the share of the non-clicks that are "
                "kept, and without any every probability would be 1. Use 1 to keep all."
            )

    def kept(self, impression_id: NDArray[np.uint64], clicked: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
        """(B,) the rows to learn: all clicks, and non-clicks by a hash of their impression and the seed.

        The same impression is kept or left out wherever it stands, in every epoch and on every process.
        """
        if self.negative_rate == 1:
            return np.ones(len(clicked), np.bool_)
        return np.asarray(clicked | (uniform(impression_id, seed) < self.negative_rate))

    def weight(self, clicked: NDArray[np.bool_], weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights (B,) or (B, H) of kept rows, with those of the non-clicks divided by the rate."""
        factor = np.where(clicked, np.float32(1), np.float32(1 / self.negative_rate))
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def uniform(ids: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) of each id: SplitMix64's finaliser (Steele et al. 2014)."""
    z: NDArray[Any] = ids + np.uint64((seed + 1) * _SPLITMIX64_STEP & (2**64 - 1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * _TO_UNIT)
