"""What a learner asks of a snapshot before it goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learners.snapshots.manifest import UnsoundSnapshotError
from learners.snapshots.snapshot import Snapshot, write_snapshot
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.learn.restart_check import check_restart
from stream.learn.snapshots import first_snapshot
from tests.learners.snapshots.forged import State, forge
from tests.stream.pipeline import SPEC, START_MS, base_snapshot, example_rows


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """A base, version 0, and a learned version in the store ``tmp_path / "s"``."""
    base = base_snapshot(tmp_path / "s")
    loop = LearningLoop(base.model(), LearningConfig(learn_batch_rows=8), 1)
    loop.step(example_rows(16, seed=1), 0, 0, START_MS)
    loop.take_publication(at_once=True)
    at = loop.state()
    learned = Snapshot(
        version=at.version,
        created_from="stream",
        watermark_ms=at.watermark_ms,
        newest_event_ms=at.newest_event_ms,
        shape=base.shape,
        config=base.config,
        state={**loop.model.state(), **at.to_arrays()},
        offsets={0: 1},
    )
    write_snapshot(str(tmp_path / "s"), learned)
    return learned


def loop_state(**values: Any) -> Callable[[State], None]:
    """The loop's state with these values."""

    def alter(state: State) -> None:
        facts = json.loads(state["loop.state"].tobytes())
        state["loop.state"] = np.frombuffer(json.dumps(facts | values).encode(), np.uint8)

    return alter


def array(name: str, value: Any) -> Callable[[State], None]:
    """Another array in it, or none."""

    def alter(state: State) -> None:
        assert name in state
        if value is None:
            del state[name]
        else:
            state[name] = value

    return alter


ALTERED: dict[str, Callable[[State], None]] = {
    "no JSON": array("loop.state", np.frombuffer(b"{", np.uint8)),
    "another version": loop_state(version=99),
    "an offset below 0": loop_state(positions={"0": [-1, 0]}),
    "a partition of 2^70": loop_state(positions={str(2**70): [1, 0]}),
    "a watermark below 0": loop_state(watermarks={"0": -5}),
    "a time as text": loop_state(watermark_ms="now"),
    "a silence of nothing": loop_state(silence=None),
    "a level of NaN": array("loop.array.step.level.level", np.array([np.nan, 1.0])),
    "a level of three": array("loop.array.step.level.level", np.zeros(3)),
    "a level without its cohorts": array("loop.array.step.level.cohorts", None),
    "an empty balance": array("loop.array.step.balance.owed", np.zeros(0)),
    "delays of another law": array("loop.array.click_delays.counts", np.zeros((2, 3), np.int64)),
    "delays without a clock": array("loop.array.click_delays.clock", None),
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_snapshot_that_no_learner_could_go_on_from_is_skipped(snapshot: Snapshot, tmp_path: Path, what: str) -> None:
    """The sound one before it is taken."""
    check_restart(snapshot, SPEC)
    assert first_snapshot(str(tmp_path / "s"), SPEC).version == snapshot.version
    state = dict(snapshot.state)
    ALTERED[what](state)
    forge(tmp_path / "s" / f"v{snapshot.version:012d}", state=ALTERED[what])
    assert first_snapshot(str(tmp_path / "s"), SPEC).version == 0


def test_a_snapshot_with_other_columns_than_its_spec_is_skipped(snapshot: Snapshot, tmp_path: Path) -> None:
    """It names the right spec, but no row of it could be scored."""
    path = tmp_path / "s" / f"v{snapshot.version:012d}"
    forge(path, manifest=lambda manifest: manifest["shape"].update(id_columns=SPEC.id_columns + 1))
    assert first_snapshot(str(tmp_path / "s"), SPEC).version == 0
    with pytest.raises(UnsoundSnapshotError, match=f"id_columns {SPEC.id_columns + 1}, its feature spec"):
        check_restart(replace(snapshot, shape=replace(snapshot.shape, id_columns=SPEC.id_columns + 1)), SPEC)
