"""Drift of the normalised log loss."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.logistic import sigmoid
from learners.metrics.drift import DriftWatch
from learners.metrics.quality import losses


def feed(watch: DriftWatch, *, rate: float, fault: float, batches: int, seed: int) -> int:
    """Batches of 128 rows whose logits know the click probability but for an error of ``fault``; the changes found."""
    generator, detections = np.random.default_rng(seed), 0
    for _ in range(batches):
        truth = generator.normal(math.log(rate / (1 - rate)), 1.0, 128)
        labels = generator.random(128) < sigmoid(truth)
        loss = float(losses(truth + generator.normal(0, fault, 128), labels).sum())
        detections += watch.update(rows=128, clicks=int(labels.sum()), loss=loss)
    return detections


def test_a_model_that_breaks_is_noticed() -> None:
    """Logits that lose their meaning raise a detection."""
    watch = DriftWatch()
    assert feed(watch, rate=0.4, fault=0.1, batches=600, seed=1) == 0
    assert feed(watch, rate=0.4, fault=4.0, batches=300, seed=2) >= 1


def test_a_click_rate_that_falls_is_no_drift_of_the_model() -> None:
    """The log loss halves with the rate; the normalised one hardly moves."""
    watch = DriftWatch()
    assert feed(watch, rate=0.5, fault=0.1, batches=400, seed=3) == 0
    assert feed(watch, rate=0.1, fault=0.1, batches=400, seed=4) == 0


def test_batches_without_a_click_are_pooled_until_there_is_one() -> None:
    """Their entropy alone would be 0."""
    watch = DriftWatch(rows=2)
    assert [watch.update(rows=2, clicks=clicks, loss=1.0) for clicks in (0, 0, 1)] == [False] * 3


def test_a_loss_that_is_not_finite_is_refused() -> None:
    """It would blind the detector for good."""
    with pytest.raises(ValueError, match="log loss of nan over 3 rows"):
        DriftWatch().update(rows=3, clicks=1, loss=float("nan"))
