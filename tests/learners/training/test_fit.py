"""Epochs over the train rows: stopping, resuming, sampling."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.examples.examples import Examples
from learners.examples.kinds import CONVERSION
from learners.examples.split import split_by_time
from learners.metrics.quality import Quality
from learners.nn.heads import Head
from learners.training.checkpoints import CheckpointError, Checkpoints
from learners.training.fit import Fit, FitConfig, score
from learners.training.sampling import NegativeSampling
from learners.training.schedule import RateSchedule
from tests.learners.archived import examples
from tests.learners.batches import CONFIG, SHAPE

SLOW = dataclasses.replace(CONFIG, vector_rate=0.01, weight_rate=0.02, dense_rate=0.001)
FAST = dataclasses.replace(CONFIG, vector_rate=0.3, weight_rate=0.5, dense_rate=0.03)


class Killed(Exception):  # noqa: N818  # no error of the program
    """The process dies here."""


def fitted(
    config: FitConfig,
    *,
    given: Examples | None = None,
    model_config: DeepFMConfig = SLOW,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    killed_after_rows: int | None = None,
) -> tuple[str, tuple[Quality, ...]]:
    """Hash of the fitted weights and the epochs' quality."""
    given = given or examples()
    split = split_by_time(given, validation_share=0.2, holdout_share=0.1)

    def report(done: int, total: int) -> None:
        if killed_after_rows is not None and done >= killed_after_rows:
            raise Killed

    heads = tuple(head.name for head in model_config.heads)
    fit = Fit(given, split, config, heads=heads, checkpoints=checkpoints, report=report)
    model, epochs = fit.run(DeepFM(model_config, SHAPE), resume=resume)
    return model.weights_sha256(), epochs


@pytest.mark.parametrize("order", ["time", "shuffled"])
@pytest.mark.parametrize("killed_after_rows", [1, 150, 415, 420, 421, 700, 1259])
def test_a_killed_training_ends_in_the_weights_of_one_never_killed(
    order: str, killed_after_rows: int, tmp_path: Path
) -> None:
    """Wherever it dies, also between epochs, and however often."""
    config = FitConfig(batch_rows=32, epochs=3, patience=3, order=order, checkpoint_steps=4)  # type: ignore[arg-type]
    never_killed = fitted(config, given=examples())
    checkpoints = Checkpoints(str(tmp_path))
    for rows in (killed_after_rows, min(killed_after_rows + 200, 1260)):
        with pytest.raises(Killed):
            fitted(config, checkpoints=checkpoints, resume=True, killed_after_rows=rows)
    assert fitted(config, checkpoints=checkpoints, resume=True) == never_killed
    assert len(checkpoints.steps()) <= 3


def test_a_finished_training_resumes_to_its_end(tmp_path: Path) -> None:
    """Nothing is learned twice; the best epoch is found again."""
    config = FitConfig(batch_rows=32, epochs=6, patience=2)
    checkpoints = Checkpoints(str(tmp_path))
    done = fitted(config, model_config=FAST, checkpoints=checkpoints)
    assert fitted(config, model_config=FAST, checkpoints=checkpoints, resume=True) == done


@pytest.mark.parametrize("changed", [{"seed": 1}, {"batch_rows": 16}, {"schedule": RateSchedule(warmup_steps=3)}])
def test_checkpoints_of_other_settings_are_refused(changed: dict[str, object], tmp_path: Path) -> None:
    """Else the result would be of neither."""
    config = FitConfig(batch_rows=32)
    checkpoints = Checkpoints(str(tmp_path))
    fitted(config, checkpoints=checkpoints)
    with pytest.raises(CheckpointError, match="other examples, settings"):
        fitted(dataclasses.replace(config, **changed), checkpoints=checkpoints, resume=True)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="other examples, settings"):
        fitted(config, given=examples(seed=1), checkpoints=checkpoints, resume=True)


def test_without_resume_a_training_begins_anew(tmp_path: Path) -> None:
    """Whatever checkpoints there are."""
    checkpoints = Checkpoints(str(tmp_path))
    fitted(FitConfig(batch_rows=16), checkpoints=checkpoints)
    assert fitted(FitConfig(batch_rows=32), checkpoints=checkpoints) == fitted(FitConfig(batch_rows=32))


def test_training_stops_early_and_keeps_the_best_epoch() -> None:
    """With rates that overfit, later epochs are worse: what is kept is the epoch of the lowest validation loss."""
    given = examples(300)
    given.columns["label"][:] = np.random.default_rng(1).random(300) < 0.5  # nothing to learn but noise
    config = FitConfig(batch_rows=32, epochs=20, patience=2)
    weights, epochs = fitted(config, given=given, model_config=FAST)
    losses = [epoch.log_loss for epoch in epochs]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + config.patience
    assert weights == fitted(dataclasses.replace(config, epochs=best + 1), given=given, model_config=FAST)[0]


def test_shuffled_epochs_follow_their_seed() -> None:
    """The same seed gives the same weights, another seed others."""
    found = [fitted(FitConfig(batch_rows=64, order="shuffled", seed=seed))[0] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_the_schedule_moves_the_rates() -> None:
    """A factor of nearly 0 leaves the model nearly where it was."""
    given, start = examples(), DeepFM(SLOW, SHAPE).state()["dense.linear.weight"]
    split = split_by_time(given, validation_share=0.2, holdout_share=0.1)
    way = []
    for schedule in (RateSchedule(), RateSchedule(warmup_steps=10**6)):
        fit = Fit(given, split, FitConfig(batch_rows=32, schedule=schedule))
        model, _ = fit.run(DeepFM(SLOW, SHAPE))
        way.append(float(np.abs(model.state()["dense.linear.weight"] - start).max()))
    assert 0 < way[1] < 1e-3 * way[0]


@pytest.mark.parametrize("negative_rate", [1.0, 0.1, 0.025])
def test_probabilities_are_those_of_all_impressions_whatever_is_left_out(negative_rate: float) -> None:
    """Where nothing but the base rate can be learned, the log-odds are the base rate's."""
    given = examples(8000)
    given.rows.ids[:] = 0
    given.rows.dense[:] = 0
    given.columns["label"][:] = np.arange(8000) % 10 == 0
    split = split_by_time(given, validation_share=0.2, holdout_share=0.1)
    config = dataclasses.replace(CONFIG, hidden=(), dense_rate=0.02, full_batch_rows=64)
    schedule = RateSchedule(plateau_steps=150, half_life_steps=40)
    sampling = NegativeSampling(negative_rate=negative_rate)
    fit_config = FitConfig(batch_rows=64, epochs=20, patience=20, schedule=schedule, sampling=sampling)
    model, epochs = Fit(given, split, fit_config).run(DeepFM(config, SHAPE))
    found = float(score(model, given, split.holdout[:1])[0])
    assert abs(found - np.log(0.1 / 0.9)) < 0.25  # without the weights it would be 3.7 too high
    assert abs(epochs[-1].observed_over_expected - 1) < 0.2


def test_all_clicks_but_only_some_non_clicks_are_learned() -> None:
    """The rows of an epoch tell."""
    given = examples(4000)
    split = split_by_time(given, validation_share=0.2, holdout_share=0.1)
    clicks = int(given.columns["label"][split.train].sum())
    kept = Fit(given, split, FitConfig(sampling=NegativeSampling(negative_rate=0.25))).rows
    assert abs(kept - clicks - 0.25 * (len(split.train) - clicks)) < 120
    assert Fit(given, split, FitConfig()).rows == len(split.train)


def test_a_conversion_head_learns_from_conversions() -> None:
    """Among clicks alone: those that convert rank first, and the other rows teach it nothing."""
    given = examples(6000)
    clicked = np.flatnonzero(given.columns["label"] == 1)
    converted = clicked[given.rows.dense[clicked, 1] > 0]
    more = given.take(np.concatenate((np.arange(6000), converted)))
    more.columns["kind"][6000:] = CONVERSION
    split = split_by_time(more, validation_share=0.1, holdout_share=0.1)
    heads = (Head("click"), Head("conversion", given="click"))
    config = dataclasses.replace(CONFIG, heads=heads, dense_rate=0.01)
    names = ("click", "conversion")
    model, _ = Fit(more, split, FitConfig(batch_rows=32), heads=names).run(DeepFM(config, SHAPE))
    own = model.predict_heads(more.rows)[split.holdout][:, 1]
    by_rule = more.rows.dense[split.holdout, 1] > 0
    assert own[by_rule].mean() > own[~by_rule].mean() + 1


@pytest.mark.parametrize("wrong", [{"batch_rows": 0}, {"epochs": 0}, {"patience": 0}, {"checkpoint_steps": 0}])
def test_a_config_that_cannot_train_is_refused(wrong: dict[str, int]) -> None:
    """The message names the field and the value."""
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        FitConfig(**wrong)  # type: ignore[arg-type]
