"""The network that runs on a device, on the CPU as a device, and on a GPU where there is one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from learners.deepfm import DeepFM, DeepFMConfig
from learners.gpu import chosen_device, moved
from learners.heads import Head
from learners.terms import Terms
from tests.learners.batches import CONFIG, SHAPE, batch

HEADS = (Head("click"), Head("conversion", given="click", hidden=(5,)), Head("like", given="conversion", hidden=()))
CONFIGS = [CONFIG, dataclasses.replace(CONFIG, heads=HEADS), dataclasses.replace(CONFIG, hidden=())]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS, ids=["one head", "three heads", "no hidden layer"])
def test_gradients_and_logits_are_those_of_the_cpu_network(config: DeepFMConfig, device: str) -> None:
    """Up to the order of sums, over some steps, with missing ids and rows that pay only one of the terms, or none."""
    generator = np.random.default_rng(4)
    ours, theirs = moved(DeepFM(config, SHAPE), torch.device(device)), DeepFM(config, SHAPE)
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
    """What was learned on a device goes on on the CPU, bit-equal in its weights."""
    generator = np.random.default_rng(5)
    ours = moved(DeepFM(CONFIG, SHAPE), torch.device("cpu"))
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


def test_batch_norm_and_dropout_stay_on_the_cpu() -> None:
    """Rather than be left out silently."""
    with pytest.raises(ValueError, match=r"dropout=0.1 must be off"):
        moved(DeepFM(dataclasses.replace(CONFIG, dropout=0.1), SHAPE), torch.device("cpu"))
