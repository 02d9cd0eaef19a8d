"""The learner killed at every boundary between two stages: what it learned is what a run never killed learns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import structlog

from learners.snapshots import store
from learners.snapshots.snapshot import versions
from learners.snapshots.store import write_synced
from stream.records.topics import JOURNAL, WEIGHTS
from stream.records.wire import DeltaPart, SnapshotNotice
from tests.brokers import TestTopics
from tests.stream.learner_harness import Killed, LearnerHarness, Moment

SENDS: dict[str, Moment] = {
    "learned, not in the journal": lambda topic, record, when: (
        topic == JOURNAL and record.version == 9 and when == "before"
    ),
    "in the journal, not published": lambda topic, record, when: (
        topic == JOURNAL and record.version == 9 and when == "after"
    ),
    "before the first part of a delta": lambda topic, record, when: (
        _part(record, 0) and record.version >= 9 and when == "before"
    ),
    "between two parts of a delta": lambda topic, record, when: (
        _part(record, 1) and record.version >= 9 and when == "before"
    ),
    "before the last part of a delta": lambda topic, record, when: (
        _part(record, -1) and record.version >= 9 and when == "before"
    ),
    "published, nothing after": lambda topic, record, when: (
        _part(record, -1) and record.version >= 9 and when == "after"
    ),
    "snapshot written, not announced": lambda topic, record, when: (
        isinstance(record, SnapshotNotice) and when == "before"
    ),
    "snapshot announced, not committed": lambda topic, record, when: (
        isinstance(record, SnapshotNotice) and when == "after"
    ),
}


def _part(record: Any, number: int) -> bool:
    """Whether it is that part (−1: the last) of a delta of several."""
    if not isinstance(record, DeltaPart) or record.version == record.parent or record.parts < 3:
        return False
    return record.part == number % record.parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas come in several parts."""
    monkeypatch.setattr("stream.learn.runner.MAX_PART_BYTES", 2_048)


@pytest.mark.parametrize("moment", SENDS.values(), ids=SENDS.keys())
async def test_killed_between_two_sends(moment: Moment, kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Whatever of a step is in the log, and whatever is not, the next life learns every batch once."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    killed, committed = await harness.learn(moment)
    assert killed, "the moment must have come"
    assert await harness.learn(committed=committed) != (True, committed)
    await harness.check()


def _half(path: Path, pieces: Any) -> None:
    path.write_bytes(b"".join(pieces)[:-100])
    raise Killed


WRITES = ("half of the weights", "no manifest", "not renamed", "renamed, not synced")


@pytest.mark.parametrize("stage", WRITES)
async def test_killed_while_a_snapshot_is_written(
    stage: str, kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that is not whole is none; the next life starts from the one before it."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    write, sync = write_synced, store.sync_directory

    def dying_write(path: Path, pieces: Any) -> None:
        if (stage, path.name) == ("half of the weights", "model.safetensors"):
            _half(path, pieces)
        if (stage, path.name) == ("no manifest", "manifest.json"):
            raise Killed
        write(path, pieces)

    def dying_sync(path: Path) -> None:
        if stage == ("renamed, not synced" if path == tmp_path else "not renamed"):
            raise Killed
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_synced", dying_write)
        patch.setattr(store, "sync_directory", dying_sync)
        killed, committed = await harness.learn()
    assert killed
    assert committed == {}, "nothing may be committed that no snapshot holds"
    assert (versions(str(tmp_path)) == [0]) == (stage != "renamed, not synced")
    await harness.learn(committed=committed)
    await harness.check()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".unfinished")], "what it left is gone"


async def test_killed_again_and_again(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Five deaths, each a little later: nothing is lost, doubled or learned otherwise."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    committed: dict[Any, int] = {}
    for version, when in ((2, "before"), (3, "after"), (9, "after"), (10, "before"), (17, "after")):
        killed, now = await harness.learn(
            lambda topic, record, at, version=version, when=when: (  # type: ignore[misc]
                topic == JOURNAL and record.version >= version and at == when
            ),
            committed,
        )
        assert killed
        committed |= now
    await harness.learn(committed=committed)
    await harness.check()


async def test_a_torn_snapshot_costs_time_not_versions(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Files damaged on the disk: the one before is taken with a warning, and the journal leads on from there."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    _, committed = await harness.learn(lambda topic, record, when: topic == WEIGHTS and record.version >= 30)
    newest = versions(str(tmp_path))[0]
    assert newest
    (tmp_path / f"v{newest:012d}" / "model.safetensors").write_bytes(b"torn")
    with structlog.testing.capture_logs() as logs:
        await harness.learn(committed=committed)
    assert "torn snapshot skipped" in [entry["event"] for entry in logs]
    await harness.check()
