"""Base training as a whole: what is learned, judged and replayed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from learners.base import BaseConfig, known_users, train_base
from learners.deepfm import DeepFM
from learners.examples import Examples
from learners.fitting import FitConfig
from learners.kinds import CORRECTION
from learners.metrics import quality
from learners.rows import Rows
from learners.sampling import ClassBalance
from tests.learners.archived import examples
from tests.learners.batches import CONFIG, SHAPE


def with_correction(given: Examples, corrected: int, known_ms: int) -> Examples:
    """One more example: the impression of a row without a click turns out to be clicked."""
    more = given.take(np.append(np.arange(len(given)), corrected))
    more.columns["kind"][-1], more.columns["label"][-1], more.columns["known_ms"][-1] = CORRECTION, 1, known_ms
    return more


def test_one_pass_in_time_order_is_what_a_stream_would_have_learned() -> None:
    """The model equals one that learned the same batches itself; the report is of before it learned the holdout."""
    given = examples()
    order = np.argsort(given.columns["known_ms"], kind="stable")
    expected, logits = DeepFM(CONFIG, SHAPE), np.empty(0, np.float32)
    for start, stop in [(0, 200), (200, 400), (400, 480), (480, 540), (540, 600)]:
        rows = Rows(given.rows.ids[order[start:stop]], given.rows.dense[order[start:stop]])
        logits = expected.predict_many(rows)
        expected.learn_many(rows, given.columns["label"][order[start:stop]])
    base = train_base(given, SHAPE, model_config=CONFIG, config=BaseConfig(fit=FitConfig(batch_rows=200)))
    assert base.model.weights_sha256() == expected.weights_sha256()
    assert base.holdout == quality(logits, given.columns["label"][order[540:]])
    assert np.array_equal(base.holdout_logits, logits)
    assert base.replayed[1] == base.holdout  # sixty rows are one batch, scored before it is learned


def test_it_learns_the_rule_of_the_examples() -> None:
    """The held-out rows are ranked far better than by chance."""
    config = BaseConfig(fit=FitConfig(batch_rows=32))
    base = train_base(examples(4000), SHAPE, model_config=CONFIG, config=config)
    assert base.holdout.rows == 400
    assert base.holdout.auc > 0.9


def test_the_watermark_is_the_newest_time_at_which_a_label_became_known() -> None:
    """The stream continues after it."""
    given = examples()
    base = train_base(given, SHAPE, model_config=CONFIG)
    assert base.watermark_ms == given.columns["known_ms"].max()
    assert base.newest_event_ms == given.columns["ts_ms"].max()
    assert base.rows == 600


def test_train_rows_do_not_know_what_came_after_the_split() -> None:
    """A correction after the split is learned in the replay as the stream would; one before it corrects the label."""
    given = examples()
    split = train_base(given, SHAPE, model_config=CONFIG).split
    unclicked = int(split.train[np.flatnonzero(given.columns["label"][split.train] == 0)[0]])
    later = with_correction(given, unclicked, split.holdout_from_ms + 1)
    at_once = with_correction(given, unclicked, split.validation_from_ms - 1)
    relabelled = examples()
    relabelled.columns["label"][unclicked] = 1
    without, late, early, labelled = (
        train_base(one, SHAPE, model_config=CONFIG) for one in (given, later, at_once, relabelled)
    )
    assert np.array_equal(late.holdout_logits, without.holdout_logits)
    assert late.model.weights_sha256() != without.model.weights_sha256()
    assert early.model.weights_sha256() == labelled.model.weights_sha256()


def test_replayed_rows_are_neither_weighted_nor_left_out() -> None:
    """The class balance is the fit's alone: after the split the model learns what the stream will."""
    given = examples(2000)
    balanced = BaseConfig(fit=FitConfig(balance=ClassBalance(negative_rate=0.5, click_weight=2.0)))
    base = train_base(given, SHAPE, model_config=CONFIG, config=balanced)
    assert sum(of.rows for of in base.replayed) == len(base.split.validation) + len(base.split.holdout)


def test_users_of_the_holdout_are_known_by_the_rows_before_it() -> None:
    """Their keys, ascending."""
    given = examples()
    split = train_base(given, SHAPE, model_config=CONFIG).split
    before = np.concatenate((split.train, split.validation))
    assert known_users(given, split).tolist() == sorted(set(given.columns["user_key"][before].tolist()))


def test_progress_ends_at_the_total() -> None:
    """Rows done grow to rows in all, the replay included, also when training stops early."""
    seen: list[tuple[int, int]] = []
    fast = dataclasses.replace(CONFIG, vector_rate=0.3, weight_rate=0.5, dense_rate=0.03)
    for config, epochs in ((CONFIG, 1), (fast, 50)):
        seen.clear()
        train_base(
            examples(),
            SHAPE,
            model_config=config,
            config=BaseConfig(fit=FitConfig(epochs=epochs)),
            progress=lambda done, total: seen.append((done, total)),
        )
        assert seen[-1][0] == seen[-1][1]
        assert seen == sorted(seen, key=lambda of: of[0])


def test_too_few_examples_are_refused() -> None:
    """There must be something to learn and something to judge by."""
    with pytest.raises(ValueError, match="3 settled examples leave 0 to validate"):
        train_base(examples(3), SHAPE, model_config=CONFIG)


@pytest.mark.parametrize("wrong", [{"validation_share": 0.0}, {"holdout_share": 1.0}, {"replay_batch_rows": 0}])
def test_a_config_that_cannot_train_is_refused(wrong: dict[str, float]) -> None:
    """The message names the field and the value."""
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        BaseConfig(**wrong)  # type: ignore[arg-type]
