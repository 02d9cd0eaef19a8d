"""Metrics against pair counting and the textbook formulas."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.logistic import sigmoid
from learners.metrics import quality as metrics
from learners.metrics.quality import auc, log_loss, normalized_entropy, quality

few_logits = st.lists(st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.1, 3.0]), st.booleans()), min_size=1, max_size=40)


def test_the_examples_in_the_docstrings_hold() -> None:
    """Every doctest of the module passes."""
    assert doctest.testmod(metrics).failed == 0
    assert doctest.testmod(metrics).attempted > 0


@given(few_logits)
@settings(deadline=None)
def test_auc_counts_pairs_in_order_and_ties_as_half(rows: list[tuple[float, bool]]) -> None:
    """Equal to the loop over all (click, non-click) pairs; NaN where there is no pair."""
    clicks = [z for z, label in rows if label]
    others = [z for z, label in rows if not label]
    found = auc(np.array([z for z, _ in rows]), np.array([label for _, label in rows]))
    if not clicks or not others:
        assert math.isnan(found)
        return
    pairs = [1.0 if c > o else 0.5 if c == o else 0.0 for c in clicks for o in others]
    assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@given(few_logits)
@settings(deadline=None)
def test_log_loss_is_the_mean_of_minus_log_likelihoods(rows: list[tuple[float, bool]]) -> None:
    """Equal to −log p of a click and −log(1 − p) of a non-click."""
    expected = [-math.log(1 / (1 + math.exp(-z if label else z))) for z, label in rows]
    found = log_loss(np.array([z for z, _ in rows], np.float32), np.array([label for _, label in rows]))
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_log_loss_of_extreme_logits_is_finite() -> None:
    """A sure and wrong prediction costs its logit, without overflow."""
    assert log_loss(np.array([-5000.0, 5000.0], np.float32), np.array([1, 0])) == pytest.approx(5000)


def test_ne_is_one_for_the_click_rate_itself() -> None:
    """Always predicting the rate of the rows is worth exactly nothing."""
    labels = np.array([1, 0, 0, 0])
    assert normalized_entropy(np.full(4, math.log(1 / 3)), labels) == pytest.approx(1)


def test_ne_of_rows_of_one_label_is_undefined() -> None:
    """Their entropy is 0."""
    assert math.isnan(normalized_entropy(np.zeros(3), np.ones(3)))


def test_quality_takes_calibrated_probabilities_for_the_ratio_only() -> None:
    """AUC and losses are those of the logits."""
    logits, labels = np.array([0.0, 1.0, 2.0]), np.array([0, 1, 1])
    plain, calibrated = quality(logits, labels), quality(logits, labels, np.full(3, 2 / 3))
    assert plain.observed_over_expected == pytest.approx(2 / sigmoid(logits).sum())
    assert calibrated.observed_over_expected == pytest.approx(1)
    assert (plain.auc, plain.log_loss, plain.ne) == (calibrated.auc, calibrated.log_loss, calibrated.ne)


def test_no_rows_give_nan_and_no_error() -> None:
    """A report of an empty day has figures that say so."""
    empty = quality(np.empty(0), np.empty(0))
    assert empty.rows == 0
    assert all(math.isnan(value) for value in (empty.auc, empty.log_loss, empty.ne, empty.observed_over_expected))
