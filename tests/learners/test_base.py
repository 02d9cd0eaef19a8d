"""Base training."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from learners.archive import Examples
from learners.base import BaseConfig, train_base
from learners.deepfm import DeepFM
from learners.metrics import quality
from learners.rows import Rows
from tests.learners.archived import encoded
from tests.learners.batches import CONFIG, SHAPE


def examples(count: int = 600, seed: int = 0) -> Examples:
    """Archived examples of the small shape."""
    made: SimpleNamespace = encoded(count, id_columns=SHAPE.id_columns, dense=SHAPE.dense, seed=seed)
    columns = {name: getattr(made, name) for name in ("impression_id", "kind", "label", "ts_ms", "known_ms")}
    weight = np.ones(count, np.float32)
    return Examples(
        spec_name="toy",
        spec_hash=SHAPE.spec_hash,
        rows=Rows(made.ids, made.dense),
        columns=columns | {"weight": weight},
    )


def test_one_pass_in_time_order_is_what_a_stream_would_have_learned() -> None:
    """The model equals one that learned the same batches itself, and the report is of before the tail was learned."""
    given = examples()
    order = np.argsort(given.columns["known_ms"], kind="stable")
    expected, logits = DeepFM(CONFIG, SHAPE), np.empty(0, np.float32)
    for start, stop in [(0, 200), (200, 400), (400, 540), (540, 600)]:
        rows = Rows(given.rows.ids[order[start:stop]], given.rows.dense[order[start:stop]])
        logits = expected.predict_many(rows)
        expected.learn_many(rows, given.columns["label"][order[start:stop]])
    base = train_base(given, SHAPE, model_config=CONFIG, config=BaseConfig(batch_rows=200))
    assert base.model.weights_sha256() == expected.weights_sha256()
    assert base.holdout == quality(logits, given.columns["label"][order[540:]])


def test_it_learns_the_rule_of_the_examples() -> None:
    """The held-out rows are ranked far better than by chance."""
    base = train_base(examples(4000), SHAPE, model_config=CONFIG, config=BaseConfig(batch_rows=32))
    assert base.holdout.rows == 400
    assert base.holdout.auc > 0.9


def test_the_watermark_is_the_newest_time_at_which_a_label_became_known() -> None:
    """The stream continues after it."""
    given = examples()
    base = train_base(given, SHAPE, model_config=CONFIG)
    assert base.watermark_ms == given.columns["known_ms"].max()
    assert base.newest_event_ms == given.columns["ts_ms"].max()
    assert base.rows == 600


def test_training_stops_early_and_keeps_the_best_epoch() -> None:
    """With rates that overfit, later epochs are worse: what is kept is the epoch of the lowest held-out loss."""
    given = examples(300)
    generator = np.random.default_rng(1)
    given.columns["label"][:] = generator.random(300) < 0.5  # nothing to learn but noise
    fast = dataclasses.replace(CONFIG, vector_rate=0.3, weight_rate=0.5, dense_rate=0.03)
    config = BaseConfig(batch_rows=32, epochs=20, patience=2)
    base = train_base(given, SHAPE, model_config=fast, config=config)
    held_out = [epoch.log_loss for epoch in base.epochs]
    best = int(np.argmin(held_out))
    assert len(held_out) == best + 1 + config.patience
    assert base.holdout == base.epochs[best]


def test_shuffled_epochs_follow_their_seed() -> None:
    """The same seed gives the same weights, another seed others."""
    found = [
        train_base(
            examples(), SHAPE, model_config=CONFIG, config=BaseConfig(batch_rows=64, order="shuffled", seed=seed)
        ).model.weights_sha256()
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


def test_progress_ends_at_the_total() -> None:
    """Rows done grow to rows in all, the holdout included."""
    seen: list[tuple[int, int]] = []
    train_base(examples(), SHAPE, model_config=CONFIG, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (600, 600)
    assert seen == sorted(seen)


def test_too_few_examples_are_refused() -> None:
    """There must be something to learn and something to judge by."""
    with pytest.raises(ValueError, match="3 settled examples leave 0 to hold out"):
        train_base(examples(3), SHAPE, model_config=CONFIG)


@pytest.mark.parametrize("wrong", [{"batch_rows": 0}, {"epochs": 0}, {"patience": 0}, {"holdout_share": 1.0}])
def test_a_config_that_cannot_train_is_refused(wrong: dict[str, float]) -> None:
    """The message names the field and the value."""
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        BaseConfig(**wrong)  # type: ignore[arg-type]
