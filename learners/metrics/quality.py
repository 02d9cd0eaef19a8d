"""Quality of predicted click probabilities, from logits and labels.

All of them are progressive when the logits were served before the labels were learned; nothing here can know that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.logistic import sigmoid
from calibration.reliability import observed_over_expected

Floats = NDArray[np.floating[Any]]
Labels = NDArray[Any]  # (B,) of 0 and 1, any dtype


def auc(logits: Floats, labels: Labels) -> float:
    """Area under the ROC curve: the share of (click, non-click) pairs that are in order, ties counting one half.

    Exact, by ranks (Mann-Whitney U). NaN when there is no click or nothing but clicks.

    >>> auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([1, 0, 1, 0]))
    0.875
    """
    positive = labels.astype(np.bool_)
    clicks, others = int(positive.sum()), int((~positive).sum())
    if clicks == 0 or others == 0:
        return float("nan")
    _, inverse, counts = np.unique(logits, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_ranks = ends - (counts - 1) / 2  # of equal logits, from 1
    rank_sum = float(mean_ranks[inverse[positive]].sum())
    return (rank_sum - clicks * (clicks + 1) / 2) / (clicks * others)


def losses(logits: Floats, labels: Labels) -> NDArray[np.float64]:
    """Log loss of each row, (B,), in nats: log(1 + e^logit) − label · logit."""
    z = logits.astype(np.float64)
    return np.logaddexp(0.0, z) - labels.astype(np.float64) * z


def log_loss(logits: Floats, labels: Labels) -> float:
    """Mean negative log likelihood in nats; NaN for no rows.

    >>> round(log_loss(np.array([0.0, 0.0]), np.array([1, 0])), 6)
    0.693147
    """
    return float(losses(logits, labels).mean()) if len(labels) else float("nan")


def entropy(rate: float) -> float:
    """Log loss of always predicting the click rate itself; NaN for a rate of 0 or 1."""
    if not 0 < rate < 1:
        return float("nan")
    return float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


def normalized_entropy(logits: Floats, labels: Labels) -> float:
    """Log loss over that of the batch's own click rate: below 1 is better than knowing only the rate.

    X. He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014, equation 1.

    >>> normalized_entropy(np.array([0.0, 0.0]), np.array([1, 0]))
    1.0
    """
    return log_loss(logits, labels) / entropy(float(labels.mean())) if len(labels) else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The four figures that every report shows."""

    rows: int
    auc: float
    log_loss: float
    ne: float
    observed_over_expected: float


def quality(logits: Floats, labels: Labels, probabilities: Floats | None = None) -> Quality:
    """All figures of a set of rows. ``probabilities`` (default: of the logits) serve the O/E only."""
    expected = sigmoid(logits) if probabilities is None else probabilities
    return Quality(
        rows=len(labels),
        auc=auc(logits, labels),
        log_loss=log_loss(logits, labels),
        ne=normalized_entropy(logits, labels),
        observed_over_expected=observed_over_expected(labels, expected),
    )
