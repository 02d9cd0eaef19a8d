"""The learner's shell over a real broker, without Faust."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
from prometheus_client import CollectorRegistry

from learners.deepfm.model import DeepFM
from learners.examples.kinds import CLICK
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.features.spec import load_spec
from learners.snapshots.manifest import SnapshotSpecError
from learners.snapshots.owner import ForeignFolderError, check_stream
from learners.snapshots.snapshot import newest_snapshot, versions
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.learn.config import LearningConfig
from stream.learn.learn_order import in_learn_order
from stream.learn.loop import LearningLoop
from stream.learn.published import last_published
from stream.learn.rebuild import rebuild
from stream.learn.runner import LearnRunner
from stream.learn.snapshots import NoSnapshotError, first_snapshot
from stream.metrics import WorkerMetrics
from stream.records import validity
from stream.records.examples import ExampleRows
from stream.records.examples_codec import decode_examples
from stream.records.topics import DEADLETTER, EXAMPLES, JOURNAL
from stream.records.wire import DeadLetter, JournalRecord
from tests.brokers import TestTopics
from tests.stream.learner_harness import LearnerHarness
from tests.stream.measured import measured
from tests.stream.pipeline import SPEC, START_MS, base_snapshot, example_rows, values


async def test_while_snapshots_cannot_be_written_the_learner_goes_on_and_tries_again(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted and said, nothing committed beyond the last one; then one is written, by itself."""
    monkeypatch.setattr("stream.agents.store_health.RETRY_S", 0.0)
    base_snapshot(tmp_path)
    broker = await find_broker(kafka_topics.settings())
    config = LearningConfig(learn_batch_rows=8, snapshot_interval_s=60)
    metrics = WorkerMetrics(CollectorRegistry())
    runner = LearnRunner(broker, SPEC, config, str(tmp_path), metrics)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def records(offset: int) -> list[InputRecord]:
        record = example_rows(8, seed=offset).to_record(SPEC.hash, START_MS + offset * 120_000).encode()
        return [InputRecord(EXAMPLES, p, offset, record, START_MS) for p in range(broker.partitions)]

    try:
        await runner.on_assigned(frozenset(range(broker.partitions)))
        await runner.work([*records(0)])
        with monkeypatch.context() as patch:
            patch.setattr("stream.learn.snapshots.write_snapshot", full)
            for offset in (1, 2, 3):
                await runner.work(records(offset))
                await runner.snapshot_written()
                await runner.tick()
            await runner.snapshot_written()
        assert versions(str(tmp_path)) == [0]
        assert not runner.offsets_to_commit()
        assert measured(metrics, "store_failing", store="snapshots") == 1
        assert measured(metrics, "store_failures_total", store="snapshots") >= 3
        assert "No space left on device" in metrics.degraded["snapshots"]
        learned_rows = measured(metrics, "learned_rows_total")
        await runner.tick()
        await runner.snapshot_written()
        await runner.tick()
        assert len(versions(str(tmp_path))) == 2
        assert set(runner.offsets_to_commit().values()) == {4}
        assert measured(metrics, "store_failing", store="snapshots") == 0
        assert not metrics.degraded
        assert learned_rows >= 8 * 3 * broker.partitions
    finally:
        await runner.close()


async def test_two_streams_on_one_folder_are_told_apart(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """While the first learns, and after it has written; its own next life and one that adopts the folder go on."""
    base_snapshot(tmp_path)
    broker = await find_broker(kafka_topics.settings())
    everything = frozenset(range(broker.partitions))

    def learner(of: Broker, config: LearningConfig | None = None) -> LearnRunner:
        config = config or LearningConfig(learn_batch_rows=8)
        return LearnRunner(of, SPEC, config, str(tmp_path), WorkerMetrics(CollectorRegistry()))

    async def taken_by(one: LearnRunner) -> None:
        try:
            await one.on_assigned(everything)
        finally:
            await one.close()

    first, other = learner(broker), replace(broker, prefix="other.")
    await first.on_assigned(everything)
    with pytest.raises(
        ForeignFolderError, match=r"is in use by stream .*/" + broker.prefix + r".*, this is .*/other\."
    ):
        await taken_by(learner(other))
    record = example_rows(8, seed=1).to_record(SPEC.hash, START_MS).encode()
    await first.work([InputRecord(EXAMPLES, p, 0, record, START_MS) for p in sorted(everything)])
    await first.on_revoked()
    written = newest_snapshot(str(tmp_path))
    assert written is not None
    assert written[1].stream.endswith(f"/{broker.prefix}")
    with pytest.raises(ForeignFolderError, match=rf"holds version {written[1].version} of stream"):
        await taken_by(learner(other))
    check_stream(str(tmp_path), written[1].stream)
    adopting = learner(other, LearningConfig(adopt_snapshots=True))
    await adopting._snapshots.take_folder(other, embedded=False, adopt=True)
    await adopting.close()


async def test_a_snapshot_is_of_the_moment_at_which_it_began(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied a few rows at a time while batches are learned, it holds the weights of its version and no later ones."""
    monkeypatch.setattr("stream.learn.snapshots._COPY_BYTES", 2_000)
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    await harness.learn(in_step=False)
    taken = [version for version in versions(str(tmp_path)) if version]
    assert len(taken) >= 2, "one on the way, one at the end"
    for version in taken:
        rebuilt = await rebuild(harness.broker, str(tmp_path), lambda _: SPEC, version=version, start_version=0)
        assert rebuilt.sha256 == rebuilt.snapshot_sha256 == rebuilt.published_sha256
    await harness.check()


async def test_what_cannot_be_learned_is_put_aside_and_counted(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """A NaN, a kind of 9: dead letters with their reasons and rows; the other rows are learned."""
    rows = example_rows(12, seed=1)
    rows.kind[2] = 9
    rows.dense[7, 0] = np.nan
    metrics = await learned(kafka_topics, tmp_path, [rows])
    broker = await find_broker(kafka_topics.settings())
    letters = [msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(broker, DEADLETTER)]
    assert sorted((one.topic, one.reason) for one in letters) == [(EXAMPLES, "not_finite"), (EXAMPLES, "schema")]
    (kind,) = (one for one in letters if one.reason == "schema")
    assert decode_examples(kind.payload, SPEC)[0].impression_id.tolist() == [rows.impression_id[2]]
    assert measured(metrics, "dead_letters_total", topic=EXAMPLES, reason="schema") == 1
    assert measured(metrics, "learned_rows_total") == 10


async def test_records_that_are_none_are_put_aside_and_an_empty_one_is_no_batch(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Bytes, another spec, columns of other lengths: each a dead letter with its bytes; the weights are the others'."""
    good = [example_rows(8, seed=at) for at in range(3)]
    foreign = good[0].to_record("0" * 16, START_MS).encode()
    short = msgspec.structs.replace(good[0].to_record(SPEC.hash, START_MS), p=b"\0").encode()
    empty = example_rows(0, seed=9)
    await learned(kafka_topics, tmp_path / "mixed", [good[0], b"\xc1", foreign, good[1], short, b"", empty, good[2]])
    broker = await find_broker(kafka_topics.settings())
    letters = [msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(broker, DEADLETTER)]
    assert [(one.offset, one.reason, one.payload) for one in letters] == [
        (1, "malformed", b"\xc1"),
        (2, "spec", foreign),
        (4, "schema", short),
        (5, "malformed", b""),
    ]
    steps = [msgspec.msgpack.decode(value, type=JournalRecord) for value in await values(broker, JOURNAL)]
    assert [step.rows for step in steps] == [8, 8, 8]
    loop = LearningLoop(base_snapshot(tmp_path / "apart").model(), LearningConfig(), broker.partitions)
    for step, rows in zip(steps, good, strict=True):
        loop.relearn(step, in_learn_order(rows))
    found = newest_snapshot(str(tmp_path / "mixed"))
    assert found is not None
    assert found[1].weights_sha256() == loop.model.weights_sha256()


def test_where_every_snapshot_is_torn_there_is_none(tmp_path: Path) -> None:
    """Each is named in a warning, the error says what to do."""
    base_snapshot(tmp_path, version=3)
    base_snapshot(tmp_path, version=4)
    for version in (3, 4):
        (tmp_path / f"v{version:012d}" / "model.safetensors").write_bytes(b"torn")
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(NoSnapshotError, match=r"holds no snapshot.*Train a base first"),
    ):
        first_snapshot(str(tmp_path), SPEC)
    assert [entry["url"][-1] for entry in logs] == ["4", "3"]
    base_snapshot(tmp_path, version=5)
    with pytest.raises(SnapshotSpecError, match=SPEC.hash):
        first_snapshot(str(tmp_path), load_spec("kuairand"))


async def test_a_loss_out_of_bounds_stops_the_publishing_and_not_the_process(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gauge is 1, the log says why, the last good version stays the published one; a restart finds it so."""
    learn_terms = DeepFM.learn_terms

    def astray(model: DeepFM, rows: Rows, terms: Terms, **options: Any) -> None:
        learn_terms(model, rows, terms, **options)
        weights = {name: array * (40 if "weight" in name else 1) for name, array in model.dense.arrays().items()}
        model.dense.load(weights)

    monkeypatch.setattr(DeepFM, "learn_terms", astray)
    with structlog.testing.capture_logs() as logs:
        batches = [example_rows(8, seed=at) for at in range(12)]
        metrics = await learned(kafka_topics, tmp_path, batches, diverged_loss_batches=2)
    assert measured(metrics, "learn_diverged") == 1
    (entry,) = (one for one in logs if one["log_level"] == "error")
    assert "more than 3 times" in entry["detail"]
    broker = await find_broker(kafka_topics.settings())
    async with LogReader(broker) as log:
        published = await last_published(log)
    journal = await values(broker, JOURNAL)
    assert published == entry["version"] == len(journal) - 1 < 12
    again = await learned(kafka_topics, tmp_path, batches, diverged_loss_batches=2)
    assert measured(again, "learn_diverged") == 1
    assert len(await values(broker, JOURNAL)) == len(journal)
    assert measured(again, "model_version") == published


@pytest.mark.filterwarnings("ignore:overflow")
async def test_a_batch_that_explodes_costs_itself_and_a_restart_learns_the_same(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, logged once, its rows in the dead letters; a second life and a rebuild come to the same weights."""
    monkeypatch.setattr(validity, "MOST_DENSE", np.inf)
    huge = [example_rows(8, seed=at, kind=np.full(8, CLICK)) for at in (3, 6)]
    for rows in huge:
        rows.dense[...] = 1e30
    batches = [huge[[3, 6].index(at)] if at in (3, 6) else example_rows(8, seed=at) for at in range(9)]
    with structlog.testing.capture_logs() as logs:
        metrics = await learned(kafka_topics, tmp_path, batches)
    assert [one["version"] for one in logs if one["log_level"] == "error"] == [4]
    assert measured(metrics, "learn_skipped_batches_total") == 2
    broker = await find_broker(kafka_topics.settings())
    letters = [msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(broker, DEADLETTER)]
    assert [one.reason for one in letters] == ["diverged", "diverged"]
    assert decode_examples(letters[0].payload, SPEC)[0].impression_id.tolist() == huge[0].impression_id.tolist()
    journal = [msgspec.msgpack.decode(value, type=JournalRecord) for value in await values(broker, JOURNAL)]
    assert [one.skipped for one in journal] == [at in (3, 6) for at in range(9)]
    rebuilt = await rebuild(broker, str(tmp_path), lambda _: SPEC, start_version=0)
    assert rebuilt.sha256 == rebuilt.snapshot_sha256 == rebuilt.published_sha256
    shutil.rmtree(tmp_path / f"v{versions(str(tmp_path))[0]:012d}")
    again = await learned(kafka_topics, tmp_path, batches)
    assert measured(again, "learn_skipped_batches_total") == 0, "learned again, not anew"
    found = newest_snapshot(str(tmp_path))
    assert found is not None
    assert found[1].weights_sha256() == rebuilt.sha256
    assert len(await values(broker, JOURNAL)) == 9


async def learned(
    topics: TestTopics, root: Path, batches: Sequence[ExampleRows | bytes], **options: Any
) -> WorkerMetrics:
    """A learner's metrics after records of partition 0, which are written when the topic is empty."""
    broker = await find_broker(topics.settings())
    if not versions(str(root)):
        base_snapshot(root)
    config = LearningConfig(learn_batch_rows=8, publish_interval_s=1.0, **options)
    metrics = WorkerMetrics(CollectorRegistry())
    runner = LearnRunner(broker, SPEC, config, str(root), metrics)
    marks = [START_MS + 2_000 * at for at in range(len(batches))]
    records = [
        given if isinstance(given, bytes) else given.to_record(SPEC.hash, mark).encode()
        for given, mark in zip(batches, marks, strict=True)
    ]
    if not await values(broker, EXAMPLES):
        async with shared_writer(broker) as writer:
            await writer.write([Outgoing(EXAMPLES, value, partition=0) for value in records])
    others = range(1, broker.partitions)
    silent = example_rows(0, seed=0).to_record(SPEC.hash, marks[-1]).encode()
    await runner.on_assigned(frozenset(range(broker.partitions)))
    await runner.work([InputRecord(EXAMPLES, p, 0, silent, START_MS) for p in others])
    for offset, value in enumerate(records):
        await runner.work([InputRecord(EXAMPLES, 0, offset, value, START_MS)])
    await runner.on_revoked()
    return metrics


async def test_a_watermark_beyond_the_clock_is_taken_for_now(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Of some far year, in this life and in the next: time goes on with the clock, and so do the snapshots."""
    base_snapshot(tmp_path)
    broker = await find_broker(kafka_topics.settings())
    config = LearningConfig(learn_batch_rows=8, snapshot_interval_s=60)
    far = example_rows(8, seed=1).to_record(SPEC.hash, 3_950_000_000_000).encode()
    partitions = range(broker.partitions)
    async with shared_writer(broker) as writer:
        await writer.write([Outgoing(EXAMPLES, far, partition=p) for p in partitions for _ in range(3)])
    for life in (0, 1):
        now_ms = START_MS + life * 600_000
        metrics = WorkerMetrics(CollectorRegistry())
        runner = LearnRunner(broker, SPEC, config, str(tmp_path), metrics, now_ms=lambda: now_ms)  # noqa: B023
        await runner.on_assigned(frozenset(partitions))
        await runner.work([InputRecord(EXAMPLES, p, life, far, START_MS) for p in partitions])
        assert measured(metrics, "learn_watermark_timestamp_seconds") * 1000 == now_ms
        now_ms += 61_000
        await runner.work([InputRecord(EXAMPLES, p, life + 1, far, START_MS) for p in partitions])
        assert measured(metrics, "learn_watermark_timestamp_seconds") * 1000 == now_ms
        await runner.snapshot_written()
        await runner.tick()
        assert measured(metrics, "snapshots_total") >= 1
        await runner.on_revoked()
