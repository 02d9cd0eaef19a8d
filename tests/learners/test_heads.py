"""Heads and the log loss along their chains."""

from __future__ import annotations

import numpy as np
import pytest

from learners.heads import Head, Heads

CHAIN = (Head("click"), Head("cart", given="click"), Head("buy", given="cart"), Head("like"))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((), "begin with one"),
        ((Head("buy", given="click"), Head("click")), "begin with one"),
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
def test_errors_are_the_derivative_of_the_loss_and_finite_at_any_logit(size: float) -> None:
    """Where the loss bends they are its slope; at extreme logits they stay within the weights."""
    generator, heads = np.random.default_rng(1), Heads(CHAIN)
    logits = (generator.standard_normal((4, 64)) * size).astype(np.float32)
    labels = (generator.random((64, 4)) < 0.5).astype(np.float32)
    weight = generator.random((64, 4)).astype(np.float32)
    errors = np.empty((4, 64), np.float32)
    heads.errors(logits, labels, weight, errors)
    assert np.isfinite(errors).all()
    assert np.abs(errors).max() <= 3 + 1e-6  # three losses hang on the first head
    if size > 5:
        return
    for head in range(4):
        step = np.float32(2e-3)
        up, down = logits.copy(), logits.copy()
        up[head] += step
        down[head] -= step
        slope = (heads.loss(up, labels, weight) - heads.loss(down, labels, weight)) / (2 * float(step))
        assert slope == pytest.approx(float(errors[head].sum(dtype=np.float64)), rel=2e-3, abs=2e-3)


def test_a_nan_is_not_lost() -> None:
    """A logit that is not a number makes an error that is none: learning must notice."""
    errors = np.empty((2, 1), np.float32)
    for label in (0, 1):
        labels, weight = np.full((1, 2), label, np.float32), np.ones((1, 2), np.float32)
        Heads(CHAIN[:2]).errors(np.array([[np.nan], [0]], np.float32), labels, weight, errors)
        assert np.isnan(errors[0, 0])
