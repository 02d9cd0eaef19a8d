"""Learning in bf16, and snapshots from when its use was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from learners.deepfm.model import DeepFM
from learners.nn.heads import Head
from learners.snapshots.snapshot import Snapshot, load_snapshot, write_snapshot
from tests.learners.batches import CONFIG, SHAPE, batch, learned, model

BF16 = dataclasses.replace(CONFIG, hidden=(16, 8), precision="bf16")


@pytest.mark.parametrize("heads", [CONFIG.heads, (Head("click"), Head("conversion", given="click", hidden=(5,)))])
def test_learning_in_bf16_follows_fp32(heads: tuple[Head, ...]) -> None:
    """Gradients agree to about the 8 bits of bf16; predictions are made in fp32 from the same weights."""
    config = dataclasses.replace(BF16, heads=heads)
    fp32, bf16 = model(dataclasses.replace(config, precision="fp32")), model(config)
    x, labels = batch(np.random.default_rng(0), 200)
    each = np.repeat(labels[:, None], len(heads), axis=1)
    a, b = (fm.gradients(x, fm.terms_of_labels(x, each)) for fm in (fp32, bf16))
    for exact, rounded in ((a.dense, b.dense), (a.table, b.table)):
        assert 0 < np.linalg.norm(exact - rounded) < 0.02 * np.linalg.norm(exact)
    assert np.array_equal(fp32.predict_many(x), bf16.predict_many(x))


def test_the_weights_of_the_moment_are_multiplied() -> None:
    """A model that goes on from a state, with its copies of the weights yet to make, learns the same bits."""
    fm = learned(3, config=BF16)
    stopped = DeepFM.from_state(BF16, SHAPE, fm.state())
    x, labels = batch(np.random.default_rng(1), 50)
    for one in (fm, stopped):
        one.learn_many(x, labels)
    assert fm.weights_sha256() == stopped.weights_sha256()


@pytest.mark.parametrize(("code", "precision"), [(-1, "fp32"), (0, "fp32"), (1, "bf16")])
def test_a_snapshot_whose_precision_was_measured_goes_on_in_it(tmp_path: Path, code: int, precision: str) -> None:
    """Its manifest says ``auto``, its state what was chosen: −1 nothing yet, 0 fp32, 1 bf16."""
    state = {**learned(3).state(), "precision.code": np.array([code], np.int8)}
    written = write_snapshot(
        str(tmp_path),
        Snapshot(
            version=1,
            created_from="stream",
            watermark_ms=0,
            newest_event_ms=0,
            shape=SHAPE,
            config=CONFIG,
            state=state,
        ),
    )
    path = Path(written.url) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["config"]["precision"] = "auto"
    path.write_text(json.dumps(manifest))
    found = load_snapshot(written.url)
    assert (found.config.precision, found.config.dim) == (precision, CONFIG.dim)
    assert found.model().weights_sha256() == learned(3).weights_sha256()
