"""Correction of log-odds for training on a sample of the negatives.

He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (ADKDD 2014), section 6.3: a model
trained on all clicks and a share w of the non-clicks predicts p; among all impressions the probability is
q = p / (p + (1 - p) / w). In log-odds that is exactly logit(q) = logit(p) + log(w).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_full_stream(logits: NDArray[np.floating[Any]], negative_rate: float) -> NDArray[np.float64]:
    """(B,) log-odds learned from a share `negative_rate` in (0, 1] of the negatives -> of the full stream."""
    return np.asarray(logits, dtype=np.float64) + _log_rate(negative_rate)


def to_sampled_stream(logits: NDArray[np.floating[Any]], negative_rate: float) -> NDArray[np.float64]:
    """The way back: (B,) log-odds of the full stream -> what a model of the sample would predict."""
    return np.asarray(logits, dtype=np.float64) - _log_rate(negative_rate)


def _log_rate(negative_rate: float) -> float:
    if not 0.0 < negative_rate <= 1.0:
        raise ValueError(
            f"negative_rate={negative_rate} is outside (0, 1]: it is the share of negatives that were "
            "kept, and 0 would make every probability 0. Pass 1.0 when nothing was left out."
        )
    return math.log(negative_rate)
