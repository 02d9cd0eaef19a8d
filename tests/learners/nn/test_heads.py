"""Heads, their terms and their chains."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from learners.examples.terms import Terms
from learners.nn.heads import Head, Heads, grad_logits

CHAIN = (Head("click"), Head("cart", given="click"), Head("buy", given="cart"), Head("like"))


def summed_loss(logits: NDArray[np.float32], terms: Terms) -> float:
    """Σ exposure·softplus(z) − event·z over rows and heads; logits (H, n), terms (n, H)."""
    z, exposure, event = logits.T.astype(np.float64), terms.exposure, terms.event
    return float(((exposure - event) * np.logaddexp(0, z) + event * np.logaddexp(0, -z)).sum())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((), "must hold one or more"),
        ((Head("buy", given="click"), Head("click")), "begin with one"),
        ((Head("click", start_p=1.0),), r"start_p=1\.0 of head click must lie between 0 and 1"),
        ((Head("click"), Head("click")), "'click' needs a name of its own"),
        ((Head("click"), Head("")), "'' needs a name"),
        ((Head("click"), Head("buy", given="cart")), r"buy is given cart.*\('click',\)"),
    ],
)
def test_heads_that_mean_nothing_are_refused(heads: tuple[Head, ...], message: str) -> None:
    """No head, a conditional first one, a name twice, or a condition that is no earlier head."""
    with pytest.raises(ValueError, match=message):
        Heads(heads)


def test_probabilities_multiply_along_the_chain() -> None:
    """P(buy) is P(click) P(cart | click) P(buy | cart); a head without ``given`` stands alone."""
    logits = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = np.stack([p[:, 0], p[:, 0] * p[:, 1], p[:, 0] * p[:, 1] * p[:, 2], p[:, 3]], 1)
    np.testing.assert_allclose(Heads(CHAIN).joint(logits), expected)


@pytest.mark.parametrize("size", [5.0, 50.0, 500.0])
def test_gradients_are_the_derivative_of_the_loss_and_finite_at_any_logit(size: float) -> None:
    """Where the loss bends they are its slope; at extreme logits they stay within the weights."""
    generator = np.random.default_rng(1)
    logits = (generator.standard_normal((4, 64)) * size).astype(np.float32)
    terms = Terms(*generator.random((2, 64, 4)).astype(np.float32))
    found = np.empty((4, 64), np.float32)
    grad_logits(logits, terms.exposure, terms.event, found)
    z = logits.astype(np.float64)
    sigmoid = np.exp(-np.logaddexp(0, -z))
    np.testing.assert_allclose(found, terms.exposure.T * sigmoid - terms.event.T, rtol=1e-6, atol=1e-7)
    assert np.isfinite(summed_loss(logits, terms))
    if size > 5:
        return
    for head in range(4):
        step = np.float32(2e-3)
        up, down = logits.copy(), logits.copy()
        up[head] += step
        down[head] -= step
        slope = (summed_loss(up, terms) - summed_loss(down, terms)) / (2 * float(step))
        assert slope == pytest.approx(float(found[head].sum(dtype=np.float64)), rel=2e-3, abs=2e-3)


def test_a_labelled_click_keeps_its_digits_at_a_high_logit() -> None:
    """Of a click that was foreseen, σ(z) − 1 is tiny, and not rounded to 0."""
    found, one = np.empty((1, 1), np.float32), np.ones((1, 1), np.float32)
    grad_logits(np.full((1, 1), 30, np.float32), one, one, found)
    assert found[0, 0] == pytest.approx(-np.exp(-30.0), rel=1e-6)


def test_labels_teach_a_head_only_where_its_condition_happened() -> None:
    """Of a row without a click, the later heads of the chain learn nothing; a head without ``given`` learns of all."""
    labels = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 1, 0]], np.float32)
    exposure, event = Heads(CHAIN).terms_of_labels(labels, np.array([1, 2, 3, 4], np.float32))
    assert exposure.tolist() == [[1, 0, 0, 1], [2, 2, 0, 2], [3, 3, 3, 3], [4, 0, 4, 4]]
    assert event.tolist() == (exposure * labels).tolist()


def test_a_nan_is_not_lost() -> None:
    """A logit that is not a number makes a gradient that is none: learning must notice."""
    logits, found = np.array([[np.nan], [0]], np.float32), np.empty((2, 1), np.float32)
    for event in (0, 1):
        grad_logits(logits, np.ones((1, 2), np.float32), np.full((1, 2), event, np.float32), found)
        assert np.isnan(found[0, 0])
