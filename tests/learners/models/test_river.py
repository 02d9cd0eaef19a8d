"""The adapter: what river is given, and what it is not asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learners.features.rows import Rows
from learners.models.river import RiverClassifier, RiverConfig
from tests.learners.learner_cases import SHAPE, batch


def test_the_adapter_is_a_loop_over_river(monkeypatch: pytest.MonkeyPatch) -> None:
    """River's own model, fed by hand with the features as documented, answers the same."""
    from river import linear_model, optim

    adapter = RiverClassifier(RiverConfig(kind="logistic_ftrl", buckets=64), SHAPE)
    model: Any = linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.05, l1=0.0, l2=0.0), intercept_lr=0.01)
    rows, labels = batch(np.random.default_rng(0), 60)

    def features(row: int) -> dict[Any, float]:
        found: dict[Any, float] = {-1 - k: float(x) for k, x in enumerate(rows.dense[row])}
        return found | {int(rows.ids[row, at]) % 64: 1.0 for at in SHAPE.embedded if rows.ids[row, at]}

    adapter.learn_many(rows, labels)
    for row in range(60):
        model.learn_one(features(row), bool(labels[row]))
    expected = [model.predict_proba_one(features(row))[True] for row in range(60)]
    np.testing.assert_allclose(1 / (1 + np.exp(-adapter.predict_many(rows))), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ad_predictor", "adaptive_random_forest"])
def test_weights_that_river_cannot_use_are_refused(kind: Any) -> None:
    """0 and 1 are a row left out and a row; anything between is an error, before anything is learned."""
    learner = RiverClassifier(RiverConfig(kind=kind, trees=2), SHAPE)
    rows, labels = batch(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"weight 0\.5 must be 0 or 1"):
        learner.learn_many(rows, labels, np.full(len(labels), 0.5, np.float32))
    assert not learner.predict_many(rows).any()


def test_a_model_that_has_seen_one_label_answers_with_finite_logits() -> None:
    """Trees answer probabilities of 0 and 1; the logit is held within what they can know."""
    learner = RiverClassifier(RiverConfig(kind="hoeffding_adaptive_tree"), SHAPE)
    rows, labels = batch(np.random.default_rng(0))
    learner.learn_many(rows, np.ones(len(labels), np.bool_))
    logits = learner.predict_many(rows)
    assert (logits > 5).all()
    assert (logits < 17).all()
    learner = RiverClassifier(RiverConfig(kind="hoeffding_adaptive_tree"), SHAPE)
    learner.learn_many(rows, np.zeros(len(labels), np.bool_))
    assert (learner.predict_many(rows) < -5).all()


def test_missing_ids_are_no_features() -> None:
    """A row of nothing but missing ids and zeros is the intercept."""
    learner = RiverClassifier(RiverConfig(kind="logistic_ftrl"), SHAPE)
    learner.learn_many(*batch(np.random.default_rng(0)))
    nothing = Rows(np.zeros((1, SHAPE.id_columns), np.uint64), np.zeros((1, SHAPE.dense), np.float32))
    assert learner.predict_many(nothing)[0] == pytest.approx(learner.model.intercept, rel=1e-5)


def test_a_state_of_another_kind_is_refused() -> None:
    """The message names both."""
    state = RiverClassifier(RiverConfig(kind="fm"), SHAPE).state()
    with pytest.raises(ValueError, match="FMClassifier must be of AdPredictor"):
        RiverClassifier.from_state(RiverConfig(kind="ad_predictor"), SHAPE, state)


def test_the_leaves_of_an_adaptive_tree_are_counted_anew() -> None:
    """River loses count where a subtree takes another's place; a count of none must not end the learning."""
    learner = RiverClassifier(RiverConfig(kind="hoeffding_adaptive_tree"), SHAPE)
    generator = np.random.default_rng(0)
    learner.learn_many(*batch(generator, 990))
    learner.model._n_active_leaves = 0
    learner.learn_many(*batch(generator, 20))
    assert learner.model._n_active_leaves >= 1
    assert learner.model._n_inactive_leaves == 0
