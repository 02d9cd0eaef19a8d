"""Clicks and non-clicks in another proportion than they came, and the log-odds that this costs.

A model of a sample that keeps a share w of the non-clicks, and in which a click weighs c, learns the odds c / w times
too high (He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014, section 6.3):

    logit(among all impressions) = logit(learned) + log w − log c,   exactly.

With c = w the two cancel: that is the importance weighting of McMahan et al., "Ad Click Prediction: a View from the
Trenches", KDD 2013, section 4.3, up to a common factor on all weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.sampling import to_full_stream

_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step
_TO_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalance:
    """What base training does with its two classes. The default leaves them as they came."""

    negative_rate: float = 1.0  # share of the non-clicks that are learned: fewer rows, hardly less signal
    click_weight: float = 1.0  # of a click's gradient

    def __post_init__(self) -> None:
        if not 0 < self.negative_rate <= 1:
            raise ValueError(
                f"negative_rate={self.negative_rate} must lie in (0, 1]: it is the share of the non-clicks that are "
                "kept, and without any every probability would be 1. Use 1 to keep all."
            )
        if not (self.click_weight > 0 and math.isfinite(self.click_weight)):
            raise ValueError(
                f"click_weight={self.click_weight} must be positive and finite: clicks would not be learned. Use 1."
            )

    def kept(self, impression_id: NDArray[np.uint64], clicked: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
        """(B,) the rows to learn: all clicks, and non-clicks by a hash of their impression and the seed.

        The same impression is kept or left out wherever it stands, in every epoch and on every worker.
        """
        if self.negative_rate == 1:
            return np.ones(len(clicked), np.bool_)
        return np.asarray(clicked | (uniform(impression_id, seed) < self.negative_rate))

    def weight(self, clicked: NDArray[np.bool_], weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights (B,) or (B, H) with those of clicked rows multiplied."""
        factor = np.where(clicked, np.float32(self.click_weight), np.float32(1))
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))

    @property
    def log_odds_shift(self) -> float:
        """What must be added to the learned log-odds to get those among all impressions."""
        return float(to_full_stream(np.zeros(1), self.negative_rate)[0]) - math.log(self.click_weight)


def uniform(ids: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) of each id: SplitMix64's finaliser (Steele et al. 2014)."""
    z: NDArray[Any] = ids + np.uint64((seed + 1) * _GOLDEN & (2**64 - 1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * _TO_UNIT)
