"""A stream goes over to a new base: every example is learned once by its line, versions ascend, serving follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog

from calibration.head import HeadCalibration
from learners.metrics.divergence import BatchLoss, LossWatch
from learners.snapshots.next_base import waiting_base, write_base
from learners.snapshots.snapshot import Snapshot, load_snapshot, newest_snapshot, versions, write_snapshot
from stream.kafka.log_reader import LogEndsEarlierError, LogReader
from stream.learn.loop import LearningLoop
from stream.learn.published import last_published
from stream.learn.rebase import as_they_came
from stream.learn.rebuild import RebuildError, rebuild
from stream.learn.relearn import RelearnError
from stream.records.topics import JOURNAL, WEIGHTS
from stream.records.wire import DeltaPart, JournalRecord, SnapshotNotice
from tests.brokers import TestTopics
from tests.stream.learner_harness import CONFIG, LearnerHarness, Moment
from tests.stream.next_base import ARCHIVED, archive, lived, train
from tests.stream.pipeline import SPEC, values


async def check_line(harness: LearnerHarness, base: Snapshot, old: list[JournalRecord]) -> None:
    """The new line learned what stands behind the base's offsets, each row once, and published it all.

    Its versions follow the base's without a hole, its newest snapshot holds the weights of a run never killed.
    """
    journal = await harness.journal()
    assert journal[: len(old)] == old, "the old line's steps stay as they were"
    steps = journal[len(old) :]
    assert [one.version for one in steps] == list(range(base.version + 1, base.version + 1 + len(steps)))
    behind = {at: rows for at, rows in harness.rows.items() if at[1] >= base.offsets.get(at[0], 0)}
    assert 0 < sum(map(len, behind.values())) < sum(map(len, harness.rows.values()))
    loop = LearningLoop(base.model(), CONFIG, harness.broker.partitions, version=base.version)
    seen: list[int] = []
    for step in steps:
        rows = harness.fetched(step)
        seen += rows.impression_id.tolist()
        loop.relearn(step, rows)
    expected = [one for rows in behind.values() for one in rows.impression_id.tolist()]
    assert sorted(seen) == sorted(expected), "none twice, none skipped"
    found = newest_snapshot(str(harness.root), spec_hash=SPEC.hash)
    assert found is not None
    assert found[1].version == loop.version > base.version
    assert found[1].weights_sha256() == loop.model.weights_sha256()
    async with LogReader(harness.broker) as log:
        assert await last_published(log) == loop.version


async def taken_base(harness: LearnerHarness) -> Snapshot:
    """The base of the newest line, as it is kept."""
    stored = [load_snapshot(f"{harness.root}/v{version:012d}") for version in versions(str(harness.root))]
    return next(one for one in stored if one.created_from == "base" and one.version)


async def test_a_learner_goes_over_to_the_base_that_waits(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """It gets the next number; what came since its offsets is learned before anything is published of it."""
    harness, committed = await lived(kafka_topics, tmp_path)
    old, parts = await harness.journal(), len(await values(harness.broker, WEIGHTS))
    waiting = waiting_base(str(harness.root))
    assert waiting is not None
    await harness.learn(committed=committed)
    assert waiting_base(str(harness.root)) is None
    base = await taken_base(harness)
    assert base.version == old[-1].version + 1
    assert (base.offsets, base.weights_sha256()) == (waiting.offsets, waiting.weights_sha256())
    await check_line(harness, base, old)
    decoder = msgspec.msgpack.Decoder(DeltaPart | SnapshotNotice)
    news = [decoder.decode(value) for value in (await values(harness.broker, WEIGHTS))[parts:]]
    assert isinstance(news[0], SnapshotNotice), "serving that cannot follow must find the whole line in the store"
    assert next(one.parent for one in news if isinstance(one, DeltaPart)) == base.version
    assert min(one.version for one in news) == news[0].version > base.version
    brought = load_snapshot(news[0].url)
    assert brought.line == base.line == base.version
    assert HeadCalibration.from_bytes(brought.calibration or b"", SPEC.slice_plan).exposures > 0


async def test_versions_of_the_new_line_are_made_again(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """From the base, equal to what was published; the base itself is its own beginning; nothing leads over to it."""
    harness, committed = await lived(kafka_topics, tmp_path)
    last_old = (await harness.journal())[-1].version
    await harness.learn(committed=committed)
    base = await taken_base(harness)
    newest = versions(str(harness.root))[0]
    rebuilt = await rebuild(harness.broker, str(harness.root), lambda _: SPEC)
    assert (rebuilt.version, rebuilt.start_version) == (newest, base.version)
    assert rebuilt.sha256 == rebuilt.published_sha256 == rebuilt.snapshot_sha256
    assert rebuilt.equal
    itself = await rebuild(harness.broker, str(harness.root), lambda _: SPEC, version=base.version)
    assert (itself.start_version, itself.batches, itself.equal) == (base.version, 0, True)
    assert itself.sha256 == base.weights_sha256()
    assert "it is a base, made by training: there is no journal of it" in itself.notes
    before = await rebuild(harness.broker, str(harness.root), lambda _: SPEC, version=last_old)
    assert before.equal
    older = versions(str(harness.root))[-1]
    assert older < last_old
    with pytest.raises(RelearnError, match=rf"goes on with {base.version + 1}: version {base.version} is a base"):
        await rebuild(harness.broker, str(harness.root), lambda _: SPEC, version=newest, start_version=older)
    with pytest.raises(RebuildError, match=f"no snapshot {base.version}"):
        await rebuild(harness.broker, str(harness.root), lambda _: SPEC, version=last_old, start_version=base.version)


DEATHS: dict[str, Moment] = {
    "before the first step is journalled": lambda topic, record, when: topic == JOURNAL and when == "before",
    "after the first step is journalled": lambda topic, record, when: topic == JOURNAL and when == "after",
    "snapshot written, not announced": lambda topic, record, when: topic == WEIGHTS and when == "before",
    "snapshot announced, no delta": lambda topic, record, when: topic == WEIGHTS and when == "after",
}


@pytest.mark.parametrize("moment", DEATHS.values(), ids=DEATHS.keys())
async def test_killed_on_the_way_to_a_new_base(moment: Moment, kafka_topics: TestTopics, tmp_path: Path) -> None:
    """The next life goes on with the base: no second number for it, no example twice, none left out."""
    harness, committed = await lived(kafka_topics, tmp_path)
    old = await harness.journal()
    killed, later = await harness.learn(moment, committed)
    assert killed
    await harness.learn(committed=committed | later)
    base = await taken_base(harness)
    assert base.version == old[-1].version + 1
    await check_line(harness, base, old)


async def test_killed_between_the_bases_number_and_the_end_of_its_wait(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a version already and still waits: the next life finds it done."""
    harness, committed = await lived(kafka_topics, tmp_path)
    old = await harness.journal()

    def dies(root: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("learners.snapshots.next_base.forget_waiting_base", dies)
        with pytest.raises(KeyboardInterrupt):
            await harness.learn(committed=committed)
    assert versions(str(harness.root))[0] == old[-1].version + 1
    assert waiting_base(str(harness.root)) is not None
    await harness.learn(committed=committed)
    assert waiting_base(str(harness.root)) is None
    base = await taken_base(harness)
    assert base.version == old[-1].version + 1
    await check_line(harness, base, old)


async def test_a_new_base_ends_a_divergence(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that went astray stays as it is in the journal; the next one learns and publishes what came since."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path / "snapshots")
    seen: list[BatchLoss] = []

    def astray(watch: LossWatch, batch: BatchLoss) -> str | None:
        seen.append(batch)
        return "beyond all bounds" if len(seen) > 9 else None

    with monkeypatch.context() as patch:
        patch.setattr(LossWatch, "update", astray)
        await harness.learn()
    old = await harness.journal()
    assert len(old) == 10, "it stopped there"
    await archive(harness, tmp_path / "archive", harness.records[:ARCHIVED])
    train(tmp_path / "archive", harness.root)
    await harness.learn()
    base = await taken_base(harness)
    assert base.version == 11
    await check_line(harness, base, old)


async def test_a_line_that_goes_astray_on_its_way_is_not_published(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced on, it is tried in earnest; serving keeps the old one, whose version the heartbeats repeat.

    Another base is the way out.
    """
    harness, committed = await lived(kafka_topics, tmp_path)
    old, parts = await harness.journal(), len(await values(harness.broker, WEIGHTS))
    with monkeypatch.context() as patch:
        patch.setattr("tests.stream.learner_harness.CONFIG", replace(CONFIG, force_base=True))
        patch.setattr(LossWatch, "update", lambda watch, batch: "beyond all bounds")
        for _ in range(2):  # a restart finds it so
            await harness.learn(committed=committed)
    assert len(await harness.journal()) == len(old) + 1
    decoder = msgspec.msgpack.Decoder(DeltaPart | SnapshotNotice)
    news = [decoder.decode(value) for value in (await values(harness.broker, WEIGHTS))[parts:]]
    assert {(one.version, one.parent) for one in news if isinstance(one, DeltaPart)} <= {(old[-1].version,) * 2}
    assert not any(isinstance(one, SnapshotNotice) for one in news)
    astray = await harness.journal()
    train(tmp_path / "archive", harness.root)
    await harness.learn(committed=committed)
    base = await taken_base(harness)
    assert base.version == astray[-1].version + 1
    await check_line(harness, base, astray)


async def test_a_base_that_is_worse_is_refused_until_it_is_forced(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the figures of both lines; the old one goes on, published as before; the base waits."""
    monkeypatch.setattr("stream.learn.base_gate._MIN_CLICKS", 10)
    harness, committed = await lived(kafka_topics, tmp_path)
    old = await harness.journal()
    base = waiting_base(str(harness.root))
    assert base is not None
    state = dict(base.state)
    state["dense.mlp.click.1.bias"] = state["dense.mlp.click.1.bias"] + np.float32(3)
    write_base(str(harness.root), replace(base, state=state))
    newest = versions(str(harness.root))[0]
    with structlog.testing.capture_logs() as logs:
        await harness.learn(committed=committed)
    (refused,) = [one for one in logs if one["event"] == "the new base is refused, the old line goes on"]
    assert refused["reason"].startswith("O/E 0.")
    assert refused["base_observed_over_expected"] < 0.9 < refused["serving_observed_over_expected"]
    assert refused["impressions"] > 100
    assert "MILLSTREAM_FORCE_BASE=1" in refused["remedy"]
    assert waiting_base(str(harness.root)) is not None
    assert versions(str(harness.root))[0] == newest
    assert await harness.journal() == old
    with monkeypatch.context() as patch:
        patch.setattr("tests.stream.learner_harness.CONFIG", replace(CONFIG, force_base=True))
        await harness.learn(committed=committed)
    taken = await taken_base(harness)
    assert taken.version == old[-1].version + 1
    await check_line(harness, taken, old)


def verdict_of(logs: list[Any]) -> dict[str, Any]:
    """The one verdict that was logged."""
    said = ("the new base is refused, the old line goes on", "the new base is no worse than the serving line")
    (found,) = [one for one in logs if one["event"] in said]
    return dict(found)


@pytest.mark.parametrize("collapsed", [True, False])
async def test_nothing_came_after_the_archive_and_a_collapsed_base_is_refused_with_figures(
    collapsed: bool, kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """It is judged on the log's rows that it was trained on; one that works is taken, with the figures too."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path / "snapshots")
    _, committed = await harness.learn()
    old = await harness.journal()
    await archive(harness, tmp_path / "archive", harness.records)
    train(tmp_path / "archive", harness.root)
    base = waiting_base(str(harness.root))
    assert base is not None
    if collapsed:
        state = {name: (of * 100 if name.startswith("dense.mlp") else of) for name, of in base.state.items()}
        write_base(str(harness.root), replace(base, state=state))
    with structlog.testing.capture_logs() as logs:
        await harness.learn(committed=committed)
    found = verdict_of(logs)
    assert found["judged_on"].startswith("the newest mature rows of the log, also those")
    assert found["impressions"] > found["clicks"] > 100
    names = ("observed_over_expected", "ne", "log_loss", "auc")
    assert {f"{line}_{name}" for line in ("serving", "base") for name in names} <= found.keys()
    assert ("reason" in found) == collapsed
    assert (waiting_base(str(harness.root)) is not None) == collapsed
    assert (await harness.journal() == old) or not collapsed


async def test_a_base_that_no_row_can_judge_is_refused_until_it_is_forced(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log holds no mature row; beside a line that never ran there is nothing to compare, and it is taken."""
    harness, committed = await lived(kafka_topics, tmp_path)
    blind = replace(CONFIG, click_window_s=1e7)
    monkeypatch.setattr("tests.stream.learner_harness.CONFIG", blind)
    with structlog.testing.capture_logs() as logs:
        await harness.learn(committed=committed)
    assert verdict_of(logs)["reason"] == "not compared: 0 mature rows"
    assert waiting_base(str(harness.root)) is not None
    monkeypatch.setattr("tests.stream.learner_harness.CONFIG", replace(blind, force_base=True))
    await harness.learn(committed=committed)
    assert waiting_base(str(harness.root)) is None


async def test_a_base_is_taken_where_no_line_ran_and_no_row_can_judge_it(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained twice before the first start."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path / "snapshots")
    await archive(harness, tmp_path / "archive", harness.records[:ARCHIVED])
    train(tmp_path / "archive", harness.root)
    monkeypatch.setattr("tests.stream.learner_harness.CONFIG", replace(CONFIG, click_window_s=1e7))
    await harness.learn()
    assert waiting_base(str(harness.root)) is None


async def test_a_base_beyond_the_log_is_refused_and_the_old_line_goes_on(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """It was trained on the archive of another log."""
    harness, committed = await lived(kafka_topics, tmp_path)
    base = waiting_base(str(harness.root))
    assert base is not None
    write_base(str(harness.root), replace(base, offsets=dict.fromkeys(base.offsets, 10**6)))
    with structlog.testing.capture_logs() as logs:
        await harness.learn(committed=committed)
    (refused,) = [one for one in logs if one["event"] == "the new base is refused, the old line goes on"]
    assert "ends before offset 1000000" in refused["reason"]


async def test_a_stream_that_begins_with_a_base_goes_on_behind_its_offsets(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Version 1, trained on the head of the log: the learner learns the rest of it, each row once."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path / "other")
    await archive(harness, tmp_path / "archive", harness.records[:ARCHIVED])
    base = train(tmp_path / "archive", tmp_path / "snapshots")
    assert base.version == 1
    assert base.offsets
    harness.root = tmp_path / "snapshots"
    await harness.learn()
    await check_line(harness, base, [])


async def test_a_base_of_another_log_is_refused(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """One that reaches beyond the log's end, and one in the place of the snapshot that the journal began from."""
    harness, _ = await lived(kafka_topics, tmp_path)
    base = waiting_base(str(harness.root))
    assert base is not None
    harness.root = tmp_path / "beyond"
    write_snapshot(str(harness.root), replace(base, offsets=dict.fromkeys(base.offsets, 10**6)))
    with pytest.raises(LogEndsEarlierError, match="ends before offset 1000000"):
        await harness.learn()
    harness.root = tmp_path / "instead"
    write_snapshot(str(harness.root), replace(base, version=0))
    with pytest.raises(RelearnError, match="the journal is of a stream that started from another snapshot"):
        await harness.learn()


async def test_records_come_by_the_time_at_which_they_were_written(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Of all partitions, from their starts on, each record once; however few are read at once."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    starts = {partition: min(3, partition) for partition in range(harness.broker.partitions)}
    async with LogReader(harness.broker) as log:
        found = [(one.timestamp, one.partition, one.offset) async for one in as_they_came(log, starts)]
    assert found == sorted(found)
    expected = [(one.partition, one.offset) for one in harness.records if one.offset >= starts[one.partition]]
    assert sorted((partition, offset) for _, partition, offset in found) == sorted(expected)
