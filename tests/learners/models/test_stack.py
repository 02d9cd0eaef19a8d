"""The stack: how the logits of trees and DeepFM become one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learners.deepfm.model import DeepFM
from learners.models.stack import Stack, StackConfig
from learners.models.trees import LeafTrees
from tests.learners.learner_cases import CASES, DAY_MS, SHAPE, batch

CONFIG: StackConfig = CASES["stack"].config


def test_the_two_learn_as_they_would_alone() -> None:
    """The logit is the weighted sum of theirs, before the first fit the DeepFM's; the weights follow AdaGrad."""
    stack, generator = Stack(CONFIG, SHAPE), np.random.default_rng(0)
    trees, model = LeafTrees(CONFIG.trees, SHAPE), DeepFM(CONFIG.deepfm, SHAPE)
    weights, squares = np.array([0.0, 0.5, 0.5]), np.zeros(3)
    for day in range(5):
        for learner in (stack, trees, model):
            learner.advance(day * DAY_MS)
        rows, labels = batch(generator, 80)
        deep, boosted = model.predict_many(rows).astype(float), trees.predict_many(rows).astype(float)
        expected = weights[0] + weights[1] * deep + weights[2] * boosted if day else deep
        np.testing.assert_allclose(stack.predict_many(rows), expected, rtol=1e-5, atol=1e-6)
        if day:
            error = 1 / (1 + np.exp(-expected)) - labels
            gradient = np.array([error.sum(), (error * deep).sum(), (error * boosted).sum()])
            squares += gradient**2
            weights -= CONFIG.rate * gradient / (CONFIG.epsilon + np.sqrt(squares))
        for learner in (stack, trees, model):
            learner.learn_many(rows, labels)
        np.testing.assert_allclose(stack.weights, weights, rtol=1e-4)
    assert not np.array_equal(weights, [0.0, 0.5, 0.5])


def test_a_logit_is_bounded() -> None:
    """A leaf without clicks must not drown the rest."""
    boosting = replace(CONFIG.trees.boosting, rate=1.0, trees=60, l2=0.0, smallest_leaf=1)
    stack = Stack(replace(CONFIG, trees=replace(CONFIG.trees, boosting=boosting)), SHAPE)
    rows, _ = batch(np.random.default_rng(0), 200)
    stack.learn_many(rows, rows.dense[:, 0] > 0)
    stack.advance(DAY_MS)
    assert np.abs(stack.trees.predict_many(rows)).max() > 12
    assert np.abs(stack.predict_many(rows) - 0.5 * stack.model.predict_many(rows)).max() <= 4 + 1e-5


def test_it_is_ahead_of_its_deepfm_where_trees_know_more() -> None:
    """A band of a number, which is nothing to a linear model, reaches the stack's logits through the trees."""
    stack, alone = Stack(CONFIG, SHAPE), DeepFM(CONFIG.deepfm, SHAPE)
    generator = np.random.default_rng(1)
    right: dict[str, list[float]] = {"stack": [], "alone": []}
    for day in range(20):
        rows, _ = batch(generator, 200)
        labels = np.abs(rows.dense[:, 0]) > 0.67
        for name, learner in (("stack", stack), ("alone", alone)):
            learner.advance(day * DAY_MS)
            right[name].append(float(np.mean((learner.predict_many(rows) > 0) == labels)))
            learner.learn_many(rows, labels)
    assert np.mean(right["stack"][-4:]) > np.mean(right["alone"][-4:]) + 0.1


@pytest.mark.parametrize("setting", [{"rate": 0.0}, {"epsilon": float("inf")}])
def test_settings_that_cannot_learn_are_refused(setting: dict[str, Any]) -> None:
    """The message names the value and the consequence."""
    with pytest.raises(ValueError, match="must be positive and finite"):
        replace(CONFIG, **setting)
