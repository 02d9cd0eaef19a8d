"""DeepFM against torch autograd and torch.optim.Adam, and its promises of exactness."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.deepfm import DeepFM, DeepFMConfig, DivergenceError
from learners.delta import DeltaError
from learners.rows import Rows
from tests.learners.batches import CONFIG, SHAPE, batch, learned, model


def autograd_logits(fm: DeepFM, rows: Rows, table: torch.Tensor, dense: dict[str, torch.Tensor]) -> torch.Tensor:
    """The paper's equations over a whole table and named tensors, pair by pair."""
    looked = table[torch.from_numpy(fm.table.rows_of(rows.ids[:, list(SHAPE.embedded)]))]
    vectors, first = looked[..., :-1], looked[..., -1]
    numbers = torch.from_numpy(rows.dense)
    logits = first.sum(1) + numbers @ dense["linear.weight"]
    for i in range(vectors.shape[1]):
        for j in range(i + 1, vectors.shape[1]):
            logits = logits + (vectors[:, i] * vectors[:, j]).sum(1)
    hidden = torch.cat([vectors.flatten(1), numbers], 1)
    layers = len(fm.config.hidden) + 1
    for layer in range(layers):
        hidden = torch.nn.functional.linear(hidden, dense[f"mlp.{layer}.weight"], dense[f"mlp.{layer}.bias"])
        if layer < layers - 1:
            hidden = torch.relu(hidden)
    return logits + hidden[:, 0]


class Reference:
    """A slow DeepFM: dense autograd over the whole table, Adagrad by rows, torch.optim.Adam."""

    def __init__(self, fm: DeepFM) -> None:
        self.fm = fm
        self.table = torch.tensor(fm.table.values.copy(), requires_grad=True)
        self.dense = {name: value.clone().requires_grad_() for name, value in fm.dense.value.items()}
        self.accumulators = torch.zeros((len(self.table), 2))
        self.adam = torch.optim.Adam(list(self.dense.values()), lr=fm.config.dense_rate)

    def learn(self, rows: Rows, labels: NDArray[np.bool_], weight: NDArray[np.float32]) -> None:
        """One step on a batch, as ``DeepFM.learn_many``."""
        logits = autograd_logits(self.fm, rows, self.table, self.dense)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.tensor(labels, dtype=torch.float32), weight=torch.tensor(weight), reduction="sum"
        )
        self.table.grad = None
        self.adam.zero_grad()
        torch.autograd.backward(loss)
        for value in self.dense.values():
            assert value.grad is not None
            value.grad /= len(labels)
        self.adam.step()
        self._adagrad()

    def _adagrad(self) -> None:
        gradient = self.table.grad
        assert gradient is not None
        gradient[0] = 0
        self.accumulators[:, 0] += gradient[:, :-1].square().mean(1)
        self.accumulators[:, 1] += gradient[:, -1].square()
        rates = torch.tensor([self.fm.config.vector_rate, self.fm.config.weight_rate])
        steps = rates / (self.accumulators.sqrt() + self.fm.config.table_epsilon)
        with torch.no_grad():
            self.table[:, :-1] -= steps[:, :1] * gradient[:, :-1]
            self.table[:, -1] -= steps[:, 1] * gradient[:, -1]


hidden_layers = st.sampled_from([(), (5,), (8, 6), (4, 4, 3)])


@given(st.integers(0, 2**32), st.integers(1, 20), hidden_layers)
@settings(deadline=None, max_examples=40)
def test_gradients_equal_autograd(seed: int, rows: int, hidden: tuple[int, ...]) -> None:
    """The written-out backward pass agrees with autograd for every parameter and table row."""
    generator = np.random.default_rng(seed)
    fm = model(dataclasses.replace(CONFIG, hidden=hidden))
    reference = Reference(fm)
    x, labels = batch(generator, rows)
    weight = generator.random(rows).astype(np.float32)
    fm.learn_many(x, labels, weight)
    reference.learn(x, labels, weight)
    for name, value in reference.dense.items():
        assert value.grad is not None
        np.testing.assert_allclose(fm.dense.gradient[name].numpy(), value.grad.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(fm.table.accumulators, reference.accumulators.numpy(), rtol=1e-3, atol=1e-7)


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_full_steps_equal_the_reference(seed: int, steps: int) -> None:
    """Logits after whole steps, Adagrad and Adam included, agree with the slow model's."""
    generator = np.random.default_rng(seed)
    fm = model(dataclasses.replace(CONFIG, table_epsilon=1e-2))  # a sum near 0 must not become a step of full size
    reference = Reference(fm)
    for _ in range(steps):
        x, labels = batch(generator, 16)
        weight = generator.random(16).astype(np.float32)
        fm.learn_many(x, labels, weight)
        reference.learn(x, labels, weight)
    x, _ = batch(generator, 8)
    expected = autograd_logits(fm, x, reference.table, reference.dense).detach().numpy()
    np.testing.assert_allclose(fm.predict_many(x), expected, rtol=1e-2, atol=2e-3)


def test_predicting_changes_nothing() -> None:
    """The weights after a prediction are those before it."""
    fm = learned(3)
    before = fm.weights_sha256()
    fm.predict_many(batch(np.random.default_rng(9), 50)[0])
    assert fm.weights_sha256() == before


def test_it_predicts_before_any_learning_and_for_no_rows() -> None:
    """A fresh model gives finite logits; an empty batch gives an empty answer."""
    x, _ = batch(np.random.default_rng(1), 7)
    assert np.isfinite(model().predict_many(x)).all()
    assert model().predict_many(Rows(x.ids[:0], x.dense[:0])).shape == (0,)


def test_it_learns_a_rule_of_ids_and_a_rule_of_dense_inputs() -> None:
    """After a few hundred steps the log loss is far below that of the base rate."""
    generator, fm = np.random.default_rng(5), model()
    for _ in range(400):
        x, _ = batch(generator, 32)
        fm.learn_many(x, ((x.ids[:, 0] + x.ids[:, 1]) % 2 == 0) ^ (x.dense[:, 0] > 1))
    x, _ = batch(generator, 500)
    labels = ((x.ids[:, 0] + x.ids[:, 1]) % 2 == 0) ^ (x.dense[:, 0] > 1)
    assert np.mean((fm.predict_many(x) > 0) == labels) > 0.9


def test_the_same_batches_give_the_same_bits() -> None:
    """Two runs over the same batches end with equal weights, another seed with others."""
    assert learned(20).weights_sha256() == learned(20).weights_sha256()
    assert learned(20).weights_sha256() != learned(20, seed=1).weights_sha256()


def test_columns_that_are_not_embedded_do_not_matter() -> None:
    """Only the spec's embedded columns move a logit."""
    fm = learned(5)
    x, _ = batch(np.random.default_rng(2), 10)
    ids = x.ids.copy()
    ids[:, 2] += np.uint64(99)
    assert np.array_equal(fm.predict_many(x), fm.predict_many(Rows(ids, x.dense)))


def test_a_weight_of_zero_leaves_the_table_rows_of_that_row_as_they_were() -> None:
    """Ids seen only in rows of weight 0 keep their values."""
    fm = model()
    x, labels = batch(np.random.default_rng(3), 2)
    ids = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], np.uint64)
    start = fm.table.values.copy()
    fm.learn_many(Rows(ids, x.dense), labels, np.array([0, 1], np.float32))
    left = fm.table.rows_of(ids[0, [0, 1, 3, 4]])
    moved = fm.table.rows_of(ids[1, [0, 1, 3, 4]])
    assert np.array_equal(fm.table.values[left], start[left])
    assert not np.array_equal(fm.table.values[moved], start[moved])


def test_inputs_are_not_aliased_and_may_be_read_only() -> None:
    """Changing a batch after learning it changes nothing, and arrays straight from a record are accepted."""
    x, labels = batch(np.random.default_rng(4), 6)
    for array in (x.ids, x.dense, labels):
        array.flags.writeable = False
    fm = model()
    fm.learn_many(x, labels)
    logits = fm.predict_many(x)
    kept = logits.copy()
    fm.predict_many(Rows(x.ids, x.dense + 1))
    assert np.array_equal(logits, kept)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_applied_deltas_make_a_serving_copy_predict_bit_equal(seed: int, publishes: list[int]) -> None:
    """After each delta a copy that never learned gives the trainer's own logits."""
    generator = np.random.default_rng(seed)
    trainer, serving = model(), model()
    probe, _ = batch(generator, 20, vocabulary=40)
    for version, steps in enumerate(publishes, start=1):
        for _ in range(steps):
            trainer.learn_many(*batch(generator, int(generator.integers(1, 20)), vocabulary=40))
        delta = trainer.changes(version=version, parent=version - 1, watermark_ms=0, newest_event_ms=0)
        serving.apply(delta)
        assert np.array_equal(serving.predict_many(probe), trainer.predict_many(probe))
        assert serving.weights_sha256() == trainer.weights_sha256()


def test_a_delta_holds_only_what_changed_since_the_last_one() -> None:
    """Rows come ascending; a second call without learning has none."""
    fm = model()
    x, labels = batch(np.random.default_rng(6), 1)
    fm.learn_many(x, labels)
    delta = fm.changes(version=1, parent=0, watermark_ms=5, newest_event_ms=4, clicks_produced_ms=[7])
    expected = np.unique(fm.table.rows_of(x.ids[:, list(SHAPE.embedded)]))
    assert delta.rows.tolist() == expected[expected > 0].tolist()
    assert delta.values.shape == (len(delta.rows), CONFIG.dim + 1)
    assert delta.clicks_produced_ms.tolist() == [7]
    assert len(fm.changes(version=2, parent=1, watermark_ms=5, newest_event_ms=4).rows) == 0


def test_a_delta_does_not_change_when_its_model_learns_on() -> None:
    """A published delta is a copy."""
    fm = learned(2)
    delta = fm.changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0)
    before = delta.payload()
    fm.learn_many(*batch(np.random.default_rng(1), 16))
    assert delta.payload() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spec_hash": "ffffffffffffffff"}, "ffffffffffffffff.*0123456789abcdef"),
        ({"rows": np.array([65], np.uint32), "values": np.ones((1, 5), np.float32)}, "65"),
        ({"rows": np.array([1], np.uint32), "values": np.ones((1, 9), np.float32)}, r"\(1, 9\)"),
        ({"dense": {"linear.weight": np.ones(3, np.float32)}}, "dense weights"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(changed: dict[str, object], message: str) -> None:
    """Another spec, a row outside the table, another dim or other layers."""
    fm = learned(2)
    delta = fm.changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0)
    other = learned(3, seed=8)
    before = other.weights_sha256()
    with pytest.raises(DeltaError, match=message):
        other.apply(dataclasses.replace(delta, **changed))  # type: ignore[arg-type]
    assert other.weights_sha256() == before


@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_continuing_from_a_state_is_bit_equal_to_never_stopping(seed: int, before: int, after: int) -> None:
    """Weights, optimiser and pending changes survive the round trip exactly."""
    generator = np.random.default_rng(seed)
    batches = [batch(generator, 8) for _ in range(before + after)]
    whole = model()
    for x, labels in batches[:before]:
        whole.learn_many(x, labels)
    stopped = DeepFM.from_state(CONFIG, SHAPE, whole.state())
    for x, labels in batches[before:]:
        whole.learn_many(x, labels)
        stopped.learn_many(x, labels)
    a, b = whole.state(), stopped.state()
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_state_holds_touched_rows_only() -> None:
    """Its size follows what was learned, not the size of the table."""
    fm = model(dataclasses.replace(CONFIG, table_rows=2**14))
    fm.learn_many(*batch(np.random.default_rng(0), 4))
    assert len(fm.state()["table.values"]) == len(fm.table) <= 16


def test_a_state_of_another_config_or_with_holes_is_refused() -> None:
    """Other layer widths and missing arrays are named."""
    state = learned(1).state()
    with pytest.raises(ValueError, match="dense weights"):
        DeepFM.from_state(dataclasses.replace(CONFIG, hidden=(3,)), SHAPE, state)
    del state["adam.first"]
    with pytest.raises(ValueError, match=r"adam\.first"):
        DeepFM.from_state(CONFIG, SHAPE, state)


def bad_batches() -> list[tuple[str, Rows, NDArray[np.generic], NDArray[np.float32] | None, str]]:
    """Name, batch, labels, weights and what the error must say."""
    x, labels = batch(np.random.default_rng(0), 4)
    nan_dense = x.dense.copy()
    nan_dense[2, 1] = np.nan
    one = np.ones(4, np.float32)
    return [
        ("label 2", x, np.array([0, 1, 2, 0]), None, "label 2 at row 2"),
        ("label nan", x, np.array([0, np.nan, 1, 0]), None, "label nan"),
        ("labels too short", x, labels[:3], None, "labels"),
        ("weight nan", x, labels, np.array([1, np.nan, 1, 1], np.float32), "weights hold nan"),
        ("weight inf", x, labels, np.array([1, 1, np.inf, 1], np.float32), "weights hold inf"),
        ("weight negative", x, labels, -one, "weight -1"),
        ("weights too long", x, labels, np.ones(5, np.float32), "weights"),
        ("dense nan", Rows(x.ids, nan_dense), labels, None, r"dense inputs hold nan at \(2, 1\)"),
        ("no rows", Rows(x.ids[:0], x.dense[:0]), labels[:0], None, "batch of 0 rows"),
        ("ids too narrow", Rows(x.ids[:, :3], x.dense), labels, None, r"\(4, 3\)"),
        ("dense too wide", Rows(x.ids, np.ones((4, 9), np.float32)), labels, None, r"\(4, 9\)"),
        ("dense too short", Rows(x.ids, x.dense[:2]), labels, None, r"\(2, 3\)"),
    ]


@pytest.mark.parametrize(
    ("rows", "labels", "weight", "message"),
    [case[1:] for case in bad_batches()],
    ids=[case[0] for case in bad_batches()],
)
def test_bad_input_is_refused_and_the_model_untouched(
    rows: Rows, labels: NDArray[np.generic], weight: NDArray[np.float32] | None, message: str
) -> None:
    """The error names the bad value; state and step count stay."""
    fm = learned(2)
    before = fm.state()
    with pytest.raises(ValueError, match=message):
        fm.learn_many(rows, labels, weight)
    after = fm.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_diverging_gradient_is_raised_before_the_update() -> None:
    """Dense inputs near the float's limit overflow the gradient: nothing is learned."""
    fm = learned(2)
    before = fm.state()
    x, labels = batch(np.random.default_rng(0), 4)
    with pytest.raises(DivergenceError, match="lower vector_rate"):
        fm.learn_many(Rows(x.ids, np.full_like(x.dense, 3e38)), labels)
    after = fm.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"weight_rate": -1.0}, {"dense_rate": float("nan")}, {"hidden": (8, 0)}])
def test_a_config_that_cannot_learn_is_refused(wrong: dict[str, object]) -> None:
    """Sizes and rates must be positive; the message names the field and the value."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeepFMConfig(**wrong)  # type: ignore[arg-type]
