"""The network in plain torch: on the CPU as a device, on a GPU where there is one, with batch norm and dropout."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from learners.deepfm.autograd_network import Learning, Tower, chosen_device
from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.nn.heads import Head
from tests.learners.batches import CONFIG, SHAPE, batch, learned, model

HEADS = (Head("click"), Head("conversion", given="click", hidden=(5,)), Head("like", given="conversion", hidden=()))
CONFIGS = [CONFIG, dataclasses.replace(CONFIG, heads=HEADS), dataclasses.replace(CONFIG, hidden=())]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


NORM = dataclasses.replace(CONFIG, hidden=(6,), batch_norm=True)
INPUTS = 19  # of SHAPE: four embedded columns of 4, three dense inputs


def moved(config: DeepFMConfig, device: str) -> DeepFM:
    """A fresh model, its dense part on ``device``."""
    fm = model(config)
    fm.move_to(torch.device(device))
    return fm


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS, ids=["one head", "three heads", "no hidden layer"])
def test_gradients_and_logits_are_those_of_the_cpu_network(config: DeepFMConfig, device: str) -> None:
    """Up to the order of sums, over some steps, with missing ids and rows that pay only one of the terms, or none."""
    generator = np.random.default_rng(4)
    ours, theirs = moved(config, device), DeepFM(config, SHAPE)
    heads = len(config.heads)
    for _ in range(5):
        rows, _ = batch(generator, 40)
        terms = Terms(*generator.integers(0, 3, (2, 40, heads)).astype(np.float32))
        assert np.allclose(ours.predict_heads(rows), theirs.predict_heads(rows), atol=1e-5)
        found, expected = ours.gradients(rows, terms), theirs.gradients(rows, terms)
        assert np.allclose(found.table, expected.table, rtol=1e-4, atol=1e-5)
        assert np.allclose(found.dense, expected.dense, rtol=1e-4, atol=1e-5)
        ours.step(found, 40)
        theirs.step(expected, 40)


def test_a_state_goes_from_one_to_the_other() -> None:
    """What was learned on a device continues on the CPU, bit-equal in its weights."""
    generator = np.random.default_rng(5)
    ours = moved(CONFIG, "cpu")
    rows, labels = batch(generator, 40)
    ours.learn_many(rows, labels)
    back = DeepFM.from_state(CONFIG, SHAPE, ours.state())
    assert back.weights_sha256() == ours.weights_sha256()
    assert ours.weights_sha256() != DeepFM(CONFIG, SHAPE).weights_sha256()


def test_the_device_is_chosen_by_what_torch_sees() -> None:
    """A GPU that is asked for must be there."""
    assert chosen_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert chosen_device("auto").type == chosen_device("cuda").type == "cuda"
        return
    assert chosen_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="--device cuda needs a GPU"):
        chosen_device("cuda")
    with pytest.raises(ValueError, match="--device tpu"):
        chosen_device("tpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [NORM, dataclasses.replace(CONFIG, dropout=0.5, batch_norm=True, heads=HEADS)])
def test_batch_norm_and_dropout_are_the_same_on_every_device(config: DeepFMConfig, device: str) -> None:
    """What is dropped does not depend on where; no rows have no gradients and no statistics."""
    generator = np.random.default_rng(6)
    ours, theirs = moved(config, device), model(config)
    for _ in range(3):
        rows, _ = batch(generator, 40)
        terms = Terms(*generator.integers(0, 3, (2, 40, len(config.heads))).astype(np.float32))
        found, expected = ours.gradients(rows, terms), theirs.gradients(rows, terms)
        assert np.allclose(found.table, expected.table, rtol=1e-4, atol=1e-5)
        assert np.allclose(found.dense, expected.dense, rtol=1e-4, atol=1e-5)
        ours.step(found, 40)
        theirs.step(expected, 40)
    assert not ours.gradients(rows, terms, slice(0, 0)).dense.any()


def test_batch_norm_agrees_with_torchs_own_layer() -> None:
    """The MLP's gradients are those of Linear → BatchNorm1d → ReLU → Linear, and so is what it predicts afterwards."""
    fm = model(NORM)
    x, error = torch.randn(30, INPUTS, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 30)
    norm = torch.nn.BatchNorm1d(6)
    first, last = torch.nn.Linear(INPUTS, 6), torch.nn.Linear(6, 1)
    names = {"0.weight": first.weight, "0.bias": first.bias, "1.weight": last.weight, "1.bias": last.bias}
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(fm.dense.value[f"mlp.click.{name}"])
    leaf = x.clone().requires_grad_()
    expected = last(torch.relu(norm(first(leaf))))[:, 0]
    expected.backward(error)
    tower, learning = Tower("mlp.click", NORM.hidden, batch_norm=True), Learning(np.random.default_rng(0))
    ours, values = x.clone().requires_grad_(), {name: v.clone().requires_grad_() for name, v in fm.dense.value.items()}
    found = tower.outputs(ours, values, learning)
    torch.testing.assert_close(found.detach(), expected.detach())
    torch.autograd.backward(found, error)
    torch.testing.assert_close(ours.grad, leaf.grad)
    for name, parameter in (names | {"0.scale": norm.weight, "0.shift": norm.bias}).items():
        torch.testing.assert_close(values[f"mlp.click.{name}"].grad, parameter.grad, rtol=1e-4, atol=1e-5)
    z = first(x).detach()
    torch.testing.assert_close(learning.statistics["mlp.click.0.mean"], z.mean(0))
    torch.testing.assert_close(learning.statistics["mlp.click.0.variance"], z.var(0, unbiased=False))


def test_a_bias_before_batch_norm_is_not_moved() -> None:
    """The mean that batch norm takes away holds it: of the rounding of its gradient, 0, Adam would make whole steps."""
    fm = learned(200, config=NORM)
    assert not fm.dense.value["mlp.click.0.bias"].any()
    assert fm.dense.value["mlp.click.0.shift"].all()
    assert fm.dense.value["mlp.click.1.bias"].all()


def test_the_place_of_a_running_statistic_gets_the_batchs_times_its_rows() -> None:
    """So that those of several parts of a batch add up, as gradients do."""
    fm, (rows, labels) = model(NORM), batch(np.random.default_rng(0), 30)
    sums = fm.dense.like()
    gradients = fm.gradients(rows, fm.terms_of_labels(rows, labels))
    sums.flat.numpy()[:] = gradients.dense
    values = np.concatenate([fm.table.gather(gradients.lookup.unique), np.zeros((1, CONFIG.dim + 1), np.float32)])
    x = np.concatenate([values[gradients.lookup.inverse][:, :, :-1].reshape(30, -1), rows.dense], axis=1)
    z = x @ fm.dense.value["mlp.click.0.weight"].numpy().T + fm.dense.value["mlp.click.0.bias"].numpy()
    np.testing.assert_allclose(sums.value["mlp.click.0.mean"], z.sum(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(sums.value["mlp.click.0.variance"], z.var(0) * 30, rtol=1e-3, atol=1e-4)


def test_running_statistics_make_a_row_independent_of_its_neighbours() -> None:
    """Predicting is by the running statistics, which follow the batches."""
    fm = learned(200, config=NORM)
    x, _ = batch(np.random.default_rng(0), 40)
    alone = np.concatenate([fm.predict_many(Rows(x.ids[[row]], x.dense[[row]])) for row in range(40)])
    np.testing.assert_allclose(fm.predict_many(x), alone, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(fm.dense.value["mlp.click.0.variance"].numpy(), np.ones(6))


def test_dropout_leaves_predictions_whole_and_learning_reproducible() -> None:
    """What is dropped depends on seed and step alone: two runs end with the same bits, another seed with others."""
    config = dataclasses.replace(CONFIG, dropout=0.5)
    assert learned(10, config=config).weights_sha256() == learned(10, config=config).weights_sha256()
    assert learned(10, config=config).weights_sha256() != learned(10).weights_sha256()
    x, _ = batch(np.random.default_rng(0), 40)
    fm = learned(10, config=config)
    assert np.array_equal(fm.predict_many(x), fm.predict_many(x))


def test_dropped_outputs_are_made_up_for_by_the_kept_ones() -> None:
    """Over many steps the learning output averages to the predicted one where the last layer is linear."""
    config = dataclasses.replace(CONFIG, hidden=(8,), dropout=0.4)
    tower, values = Tower("mlp.click", (8,), dropout=0.4), model(config).dense.value
    x = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(1))
    outputs = [tower.outputs(x, values, Learning(np.random.default_rng(step))) for step in range(3000)]
    torch.testing.assert_close(torch.stack(outputs).mean(0), tower.outputs(x, values), rtol=0, atol=0.05)


@pytest.mark.parametrize("config", [NORM, dataclasses.replace(CONFIG, dropout=0.3, batch_norm=True)])
def test_a_base_with_batch_norm_goes_on_bit_equal_and_travels_in_deltas(config: object) -> None:
    """Running statistics are part of the state and of what serving gets."""
    assert isinstance(config, type(CONFIG))
    fm = learned(5, config=config)
    stopped, serving = DeepFM.from_state(config, SHAPE, fm.state()), model(config)
    x, labels = batch(np.random.default_rng(7), 1)  # a single row too
    for one in (fm, stopped):
        one.learn_many(x, labels)
    assert fm.weights_sha256() == stopped.weights_sha256()
    serving.apply(fm.changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0))
    assert np.array_equal(serving.predict_many(x), fm.predict_many(x))
