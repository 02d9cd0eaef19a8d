"""Batch norm and dropout of base models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from learners.deepfm import DeepFM
from learners.rows import Rows
from tests.learners.batches import CONFIG, SHAPE, batch, learned, model

NORM = dataclasses.replace(CONFIG, hidden=(6,), batch_norm=True)


def test_batch_norm_agrees_with_torchs_own_layer() -> None:
    """The MLP's gradients are those of Linear → BatchNorm1d → ReLU → Linear, and so is what it predicts afterwards."""
    fm = model(NORM)
    mlp = fm.network.mlps[0]
    x, error = torch.randn(30, mlp.widths[0], generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 30)
    norm = torch.nn.BatchNorm1d(6)
    first, last = torch.nn.Linear(mlp.widths[0], 6), torch.nn.Linear(6, 1)
    names = {"0.weight": first.weight, "0.bias": first.bias, "1.weight": last.weight, "1.bias": last.bias}
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(fm.dense.value[f"mlp.click.{name}"])
    leaf = x.clone().requires_grad_()
    expected = last(torch.relu(norm(first(leaf))))[:, 0]
    expected.backward(error)
    flow, places, buffers = torch.empty_like(x), fm.dense.like(), mlp.buffers(30)
    torch.testing.assert_close(mlp.forward(x, buffers, learning=True), expected.detach())
    mlp.backward(x, error, buffers, places.value, flow, add=False)
    torch.testing.assert_close(flow, leaf.grad)
    for name, parameter in (names | {"0.scale": norm.weight, "0.shift": norm.bias}).items():
        torch.testing.assert_close(places.value[f"mlp.click.{name}"], parameter.grad, rtol=1e-4, atol=1e-5)
    z = first(x).detach()
    torch.testing.assert_close(places.value["mlp.click.0.mean"], z.sum(0))
    torch.testing.assert_close(places.value["mlp.click.0.variance"], z.var(0, unbiased=False) * 30)


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
    fm = model(dataclasses.replace(CONFIG, hidden=(8,), dropout=0.4))
    mlp = fm.network.mlps[0]
    x = torch.randn(5, mlp.widths[0], generator=torch.Generator().manual_seed(1))
    outputs = []
    for step in range(3000):
        mlp.begin(step, 0)
        outputs.append(mlp.forward(x, mlp.buffers(5), learning=True))
    torch.testing.assert_close(
        torch.stack(outputs).mean(0), mlp.forward(x, mlp.buffers(5), learning=False), rtol=0, atol=0.05
    )


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
