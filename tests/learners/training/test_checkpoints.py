"""Checkpoints of base training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learners.metrics.quality import Quality
from learners.training.checkpoints import Checkpoint, CheckpointError, Checkpoints, Progress

QUALITY = Quality(rows=3, auc=0.75, log_loss=0.1 + 0.2, ne=float("nan"), observed_over_expected=1.0)


def checkpoint(step: int, *, best: bool = False) -> Checkpoint:
    """One whose arrays tell its step."""
    state: dict[str, NDArray[Any]] = {
        "table.keys": np.arange(step, dtype=np.uint64),
        "dense.w": np.full((2, 3), step, np.float32).T,
    }
    progress = Progress(fingerprint="f", step=step, epoch=1, batch=7, epochs=(QUALITY,), best_epoch=0)
    return Checkpoint(progress=progress, state=state, best={"dense.w": np.zeros(1, np.float32)} if best else None)


def test_a_checkpoint_returns_as_it_was_written(tmp_path: Path) -> None:
    """Arrays to the last bit, the progress with its figures, the best state where there is one."""
    held = Checkpoints(str(tmp_path))
    assert held.newest("f") is None
    held.write(checkpoint(5, best=True))
    found = held.newest("f")
    assert found is not None
    assert found.progress.epochs[0].log_loss == 0.1 + 0.2
    assert (found.progress.step, found.progress.epoch, found.progress.batch) == (5, 1, 7)
    assert found.state["table.keys"].tolist() == [0, 1, 2, 3, 4]
    assert found.state["dense.w"].shape == (3, 2)
    assert found.best is not None
    held.write(checkpoint(6))
    newer = held.newest("f")
    assert newer is not None
    assert newer.best is None


def test_the_newest_three_stay(tmp_path: Path) -> None:
    """And nothing else lies there."""
    held = Checkpoints(str(tmp_path))
    for step in (100, 200, 300, 400, 500):
        held.write(checkpoint(step))
    assert held.steps() == [500, 400, 300]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_torn_checkpoint_is_skipped(tmp_path: Path) -> None:
    """Without its progress, or with an altered state, the one before it counts."""
    held = Checkpoints(str(tmp_path))
    for step in (1, 2, 3):
        held.write(checkpoint(step))
    (tmp_path / "c000000000003" / "progress.msgpack").unlink()
    state = tmp_path / "c000000000002" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    found = held.newest("f")
    assert found is not None
    assert found.progress.step == 1


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    """Its weights would be of other examples or settings."""
    held = Checkpoints(str(tmp_path))
    held.write(checkpoint(1))
    with pytest.raises(CheckpointError, match="fingerprint f, this one has g"):
        held.newest("g")
