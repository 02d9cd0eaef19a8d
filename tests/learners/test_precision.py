"""The choice between bf16 and fp32."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from learners import precision
from learners.deepfm import DeepFM
from learners.precision import CHECKED_EVERY, Precision, bf16_speedup
from tests.learners.batches import CONFIG, SHAPE, batch, model

WIDE = (624, 512)


def speed(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    """Let bf16 measure so fast."""
    monkeypatch.setattr(precision, "bf16_speedup", lambda inputs, outputs: speedup)


@pytest.mark.parametrize(("speedup", "bf16"), [(0.5, False), (1.1, False), (1.3, True), (16.0, True)])
def test_bf16_is_chosen_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch, speedup: float, bf16: bool) -> None:
    """By a quarter at least, else fp32."""
    speed(monkeypatch, speedup)
    assert Precision("auto", WIDE).bf16 is bf16


def test_narrow_layers_and_fixed_settings_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small MLP stays in fp32 everywhere; a setting that is no ``auto`` is obeyed, whatever the losses."""
    speed(monkeypatch, 16.0)
    assert not Precision("auto", (512, 64)).bf16
    assert not Precision("fp32", WIDE).bf16
    fixed = Precision("bf16", WIDE)
    assert fixed.bf16
    assert not fixed.due(0)


def test_the_loss_is_compared_at_the_first_step_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another loss in bf16, or none, ends its use for good."""
    speed(monkeypatch, 2.0)
    for other, kept in ((100.05, True), (100.2, False), (float("nan"), False)):
        choice = Precision("auto", WIDE)
        assert [step for step in range(2 * CHECKED_EVERY) if choice.due(step)] == [0, CHECKED_EVERY]
        choice.compare(100.0, other)
        assert choice.bf16 is kept
        assert choice.due(2 * CHECKED_EVERY) is kept


def test_the_machine_is_really_measured() -> None:
    """A layer takes some time in both formats."""
    assert bf16_speedup(64, 32) > 0


def test_learning_in_bf16_follows_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients agree to about the 8 bits of bf16; predictions are made in fp32 from the same weights."""
    fp32, bf16 = (model(dataclasses.replace(CONFIG, hidden=(16, 8), precision=name)) for name in ("fp32", "bf16"))
    x, labels = batch(np.random.default_rng(0), 200)
    a, b = (fm.gradients(x, fm.terms_of_labels(x, labels)) for fm in (fp32, bf16))
    for exact, rounded in ((a.dense, b.dense), (a.table, b.table)):
        assert 0 < np.linalg.norm(exact - rounded) < 0.02 * np.linalg.norm(exact)
    assert np.array_equal(fp32.predict_many(x), bf16.predict_many(x))


def test_the_choice_is_part_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that goes on where bf16 is slow keeps what was chosen where it was fast, and so its bits."""
    config = dataclasses.replace(CONFIG, dim=64, hidden=(256,))
    speed(monkeypatch, 2.0)
    fm = model(config)
    generator = np.random.default_rng(0)
    fm.learn_many(*batch(generator, 50))
    state = fm.state()
    assert state["precision.code"] == 1
    speed(monkeypatch, 0.5)
    stopped = DeepFM.from_state(config, SHAPE, state)
    x, labels = batch(generator, 50)
    for one in (fm, stopped):
        one.learn_many(x, labels)
    assert fm.weights_sha256() == stopped.weights_sha256()
