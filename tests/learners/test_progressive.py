"""Progressive figures from terms equal those from labels, once every click has come."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.metrics import quality
from learners.progressive import terms_quality
from learners.terms import Terms


def additive(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, Terms]:
    """Every row as an exposure, then every click as a row of its own."""
    clicks = int(labels.sum())
    exposure = np.concatenate([np.ones(len(labels)), np.zeros(clicks)]).astype(np.float32)
    return np.concatenate([logits, logits[labels]]), Terms(exposure, 1 - exposure)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 300), st.booleans())
def test_the_figures_of_terms_are_those_of_labels(seed: int, count: int, ties: bool) -> None:
    """AUC, log loss, NE and O/E: the exposures and their clicks say the same as labelled rows."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, count)
    logits = np.round(logits) if ties else logits
    labels = rng.random(count) < 1 / (1 + np.exp(-logits))
    if not 0 < labels.sum() < count:
        return
    expected, found = quality(logits, labels), terms_quality(*additive(logits, labels))
    assert found.rows == count
    for name in ("auc", "log_loss", "ne", "observed_over_expected"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-9)


def test_exposures_that_stand_for_several_count_as_several() -> None:
    """A tenth of the exposures at weight ten: the figures of all, within what the draw leaves."""
    rng = np.random.default_rng(1)
    logits = rng.normal(-3, 1, 200_000)
    labels = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
    z, terms = additive(logits, labels)
    kept = (terms.exposure == 0) | (rng.random(len(z)) < 0.1)
    found = terms_quality(z[kept], Terms(terms.exposure[kept] * 10, terms.event[kept]))
    expected = quality(logits, labels)
    for name in ("auc", "log_loss", "observed_over_expected"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.02)


def test_without_clicks_or_exposures_there_is_no_figure() -> None:
    """NaN, not an error."""
    nothing = np.zeros(0, np.float32)
    none = terms_quality(nothing, Terms(nothing, nothing))
    assert math.isnan(none.log_loss)
    assert math.isnan(none.auc)
    clicks = terms_quality(np.zeros(3), Terms(np.zeros(3, np.float32), np.ones(3, np.float32)))
    assert math.isnan(clicks.observed_over_expected)
