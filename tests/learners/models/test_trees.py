"""Boosted trees: fitted forests, their daily refit, and the leaves in between."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learners.features.rows import Rows
from learners.models.boosting import BoostingConfig, Categories, Forest
from learners.models.row_buffer import Remembered, codes_of
from learners.models.trees import LeafTrees, TreesConfig
from tests.learners.learner_cases import DAY_MS, SHAPE, batch

CONFIG = TreesConfig(
    boosting=BoostingConfig(forests=2, trees=10, leaves=6, smallest_leaf=5, rate=0.3, tree_share=0.8, node_share=1.0),
    buffer_rows=500,
    first_fit_rows=100,
)


def remembered(count: int = 400) -> Remembered:
    """Rows whose label hangs on an id with few values and on a number."""
    rows, labels = batch(np.random.default_rng(0), count)
    codes = codes_of(rows.ids[:, list(SHAPE.embedded)])
    return Remembered(codes, rows.dense, labels.astype(np.float32), np.ones(count, np.float32))


def log_loss(logits: NDArray[Any], target: NDArray[Any]) -> float:
    """Mean log loss."""
    return float(np.mean(np.logaddexp(0, logits) - target * logits))


def test_leaf_values_add_up_to_what_lightgbm_says() -> None:
    """The sum of a row's leaves is the mean of the ensembles' raw scores."""
    rows = remembered()
    forest = Forest.fit(CONFIG.boosting, rows)
    inputs = np.concatenate((rows.dense, Categories.of(rows.codes, 64).numbers(rows.codes)), axis=1)
    raws = [np.asarray(booster.predict(inputs, raw_score=True)) for booster in forest.boosters]
    assert len(raws) == 2
    assert not np.array_equal(raws[0], raws[1])  # another seed draws other inputs
    raw = np.mean(raws, axis=0)
    np.testing.assert_allclose(forest.leaf_values[forest.leaves(rows.codes, rows.dense)].sum(axis=1), raw, atol=1e-9)
    assert log_loss(np.asarray(raw), rows.target) < 0.2


def test_a_forest_is_the_same_after_its_state() -> None:
    """The same leaves, for values that were not there to be fitted as well."""
    rows = remembered()
    forest = Forest.fit(CONFIG.boosting, rows)
    again = Forest.from_state(CONFIG.boosting, forest.state())
    strange = rows.codes + np.uint32(12345)
    for codes in (rows.codes, strange):
        assert np.array_equal(forest.leaves(codes, rows.dense), again.leaves(codes, rows.dense))


def test_few_values_are_categories_and_many_are_left_out() -> None:
    """Known values have their rank, unknown ones are NaN; a column of one value or of too many is not read."""
    codes = np.array([[7, 1, 4], [9, 2, 4], [7, 3, 4]], np.uint32)
    found = Categories.of(codes, most=2)
    assert found.columns.tolist() == [0]
    np.testing.assert_array_equal(
        found.numbers(np.array([[9, 0, 0], [8, 0, 0], [7, 0, 0]], np.uint32)), [[1], [np.nan], [0]]
    )


def fed(learner: LeafTrees, days: int, rows: int = 150, first: int = 0) -> LeafTrees:
    """A batch a day, after the time was moved on."""
    generator = np.random.default_rng(first)
    for day in range(first, first + days):
        learner.advance(day * DAY_MS)
        learner.learn_many(*batch(generator, rows))
    return learner


def test_trees_are_fitted_when_a_day_has_ended_and_rows_are_enough() -> None:
    """Until then an intercept answers; within a day nothing is refitted."""
    learner = fed(LeafTrees(CONFIG, SHAPE), 1)
    rows, _ = batch(np.random.default_rng(9), 50)
    assert not learner.fitted
    assert len(set(learner.predict_many(rows).tolist())) == 1
    learner.advance(DAY_MS - 1)
    assert not learner.fitted
    learner.advance(DAY_MS)
    assert learner.fitted
    before = learner.predict_many(rows)
    learner.learn_many(*batch(np.random.default_rng(2), 100))
    learned = learner.predict_many(rows)
    learner.advance(2 * DAY_MS - 1)
    assert np.array_equal(learner.predict_many(rows), learned)
    assert not np.array_equal(before, learned)


def test_the_day_is_local() -> None:
    """With an offset of eight hours the day ends at 16:00 UTC."""
    learner = fed(LeafTrees(replace(CONFIG, utc_offset_s=28_800), SHAPE), 1)
    learner.advance(DAY_MS * 2 // 3 - 1)
    assert not learner.fitted
    learner.advance(DAY_MS * 2 // 3)
    assert learner.fitted


def test_right_after_a_refit_it_is_the_ensemble_and_then_follows_the_stream() -> None:
    """Leaf weights start at the boosted values; when all labels turn, the next batches turn them."""
    learner = fed(LeafTrees(replace(CONFIG, leaf_rate=3.0), SHAPE), 3)
    learner.advance(3 * DAY_MS)
    assert learner.forest is not None
    assert np.array_equal(learner.state()["trees.weights"][1:], learner.forest.leaf_values)
    generator = np.random.default_rng(4)
    losses = []
    for _ in range(40):
        rows, labels = batch(generator, 50)
        losses.append(log_loss(learner.predict_many(rows), ~labels))
        learner.learn_many(rows, ~labels)
    assert losses[-1] < losses[0] / 3


def test_one_label_alone_fits_no_trees() -> None:
    """A first day without a click leaves the intercept."""
    learner = LeafTrees(CONFIG, SHAPE)
    learner.advance(0)
    learner.learn_many(batch(np.random.default_rng(0), 200)[0], np.zeros(200, np.bool_))
    learner.advance(DAY_MS)
    assert not learner.fitted


def test_rows_of_any_size_are_answered_alike() -> None:
    """A row alone has the logit that it has in a batch."""
    learner = fed(LeafTrees(CONFIG, SHAPE), 3)
    rows, _ = batch(np.random.default_rng(9), 20)
    alone = [learner.predict_many(Rows(rows.ids[i : i + 1], rows.dense[i : i + 1]))[0] for i in range(20)]
    assert learner.predict_many(rows).tolist() == alone


def test_without_lightgbm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner itself can be made; a fit says what to install."""
    learner, found = fed(LeafTrees(CONFIG, SHAPE), 1), builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "lightgbm":
            raise ImportError(name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"millstream\[trees\]"):
        learner.advance(DAY_MS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_fit_rows": 600}, "first_fit_rows=600 must not exceed buffer_rows=500"),
        ({"refit_every_s": 0.0}, "refit_every_s=0.0 must be positive"),
    ],
)
def test_settings_that_never_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    """The message names the value and the consequence."""
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)
