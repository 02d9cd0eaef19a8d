"""Retention that overtook a reader: it starts from what it holds, or says what is gone; a gap is never silent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import pytest
import structlog
from prometheus_client import CollectorRegistry

from calibration.config import CalibratorConfig
from learners.examples.archive import read_examples
from learners.snapshots.snapshot import versions
from stream.archive.part_buffer import ArchiveConfig
from stream.archive.runner import ArchiveRunner
from stream.archive.store import archive_store_of
from stream.calibrate.calibrator import PartitionCalibrator
from stream.calibrate.runner import CalibrateRunner
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.learn.rebuild import rebuild
from stream.learn.relearn import RelearnError
from stream.learn.runner import LearnRunner
from stream.learn.snapshots import NoSnapshotError
from stream.metrics import WorkerMetrics
from stream.records.examples_codec import decode_examples
from stream.records.topics import CALIBRATION, EXAMPLES, JOURNAL
from stream.records.wire import CalibrationRecord
from tests.brokers import TestTopics
from tests.stream.learner_harness import CONFIG, LearnerHarness
from tests.stream.measured import measured
from tests.stream.next_base import ARCHIVED, archive, train
from tests.stream.pipeline import SPEC, START_MS, example_rows, values
from tests.stream.retained import retained_from

KEEPS = CalibratorConfig(half_life_clicks=float("inf"))

pytestmark = pytest.mark.usefixtures("apache_kafka")


# -------------------------------------------------------------------------------------------------------------- learner


async def life(
    harness: LearnerHarness, records: Iterable[InputRecord], *, killed: bool = False
) -> tuple[LearnRunner, WorkerMetrics]:
    """A learner that is given records, and stops, or is killed without a last snapshot."""
    metrics = WorkerMetrics(CollectorRegistry())
    runner = LearnRunner(harness.broker, SPEC, CONFIG, str(harness.root), metrics)
    try:
        await runner.on_assigned(frozenset(range(harness.broker.partitions)))
        for record in records:
            await runner.work([record])
            await runner.snapshot_written()  # which versions have a snapshot must not hang on the disk's speed
        if not killed:
            await runner.on_revoked()
    finally:
        await runner.close()
    return runner, metrics


async def killed_after(harness: LearnerHarness, count: int) -> tuple[int, int]:
    """A learner is killed; the version of its newest snapshot and the last one of its journal."""
    await life(harness, harness.records[:count], killed=True)
    newest, last = versions(str(harness.root))[0], (await harness.journal())[-1].version
    assert newest < last
    return newest, last


async def test_the_learner_starts_from_its_snapshot_when_all_before_it_is_gone(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Journal and examples up to the snapshot: the same version goes on, and what it learns can be made again."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    runner, _ = await life(harness, harness.records[:40])
    before = versions(str(tmp_path))[0]
    for (_, partition), offset in runner.offsets_to_commit().items():
        await retained_from(kafka_topics, EXAMPLES, offset, partition)
    await retained_from(kafka_topics, JOURNAL, -1)
    _, metrics = await life(harness, harness.records[40:])
    assert measured(metrics, "learn_lost_records_total") == 0
    assert measured(metrics, "learned_rows_total") == sum(one.rows for one in await harness.journal())
    assert versions(str(tmp_path))[0] > before
    rebuilt = await rebuild(harness.broker, str(tmp_path), lambda _: SPEC, start_version=before)
    assert rebuilt.version == versions(str(tmp_path))[0]
    assert rebuilt.equal
    assert rebuilt.sha256 == rebuilt.published_sha256 == rebuilt.snapshot_sha256


@pytest.mark.parametrize("kept", ["nothing", "the last entries"])
async def test_a_journal_that_is_gone_behind_the_snapshot_is_an_error(
    kept: str, kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Of the learner's start and of a rebuild; it names the topic, the offset, the versions and the remedy."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    newest, last = await killed_after(harness, 45)
    async with LogReader(harness.broker) as log:
        offsets = [record.offset async for record in log.read(JOURNAL, 0)]
    if kept == "nothing":
        await retained_from(kafka_topics, JOURNAL, -1)
        said = rf"snapshot {newest} and the journal \({JOURNAL}\[0\] from offset \d+ on\) lead to {newest} only"
        with pytest.raises(NoSnapshotError, match=rf"{said}.*train a new base.*retention\.ms"):
            await life(harness, [])
        again = rf"leads from version {newest} to {newest}, not to {last}.* before \d+ are no longer.*retention\.ms"
    else:
        await retained_from(kafka_topics, JOURNAL, offsets[-1])
        begins = rf"\({JOURNAL}, oldest offset {offsets[-1]}\) begins with version {last}"
        again = rf"{begins}, needed are {newest + 1} on.*retention\.ms"
        with pytest.raises(RelearnError, match=again):
            await life(harness, [])
    with pytest.raises(RelearnError, match=again):
        await rebuild(harness.broker, str(tmp_path), lambda _: SPEC, version=last)


async def test_examples_of_the_journal_that_are_gone_are_an_error(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Of the learner's start and of a rebuild; it names partition, offsets, version and the remedy."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    newest, last = await killed_after(harness, 45)
    learned = next(one for one in (await harness.journal())[newest].ranges if one.to_offset > one.from_offset)
    await retained_from(kafka_topics, EXAMPLES, learned.to_offset, learned.partition)
    said = (
        rf"version \d+ was learned from {EXAMPLES}\[{learned.partition}\] offsets \d+ to \d+, of which those before "
        rf"{learned.to_offset} are no longer in the log.*newer snapshot.*retention\.ms"
    )
    with pytest.raises(RelearnError, match=said):
        await life(harness, [])
    with pytest.raises(RelearnError, match=said):
        await rebuild(harness.broker, str(tmp_path), lambda _: SPEC, version=last, start_version=newest)


async def test_examples_that_were_never_learned_are_counted(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """The learner was away for longer than the topic keeps them: it goes on behind them, and says so."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path)
    runner, _ = await life(harness, harness.records[:30])
    committed = {partition: offset for (_, partition), offset in runner.offsets_to_commit().items()}
    partition, rest = 2, harness.records[30:]
    left = [record for record in rest if record.partition == partition][2:]
    await retained_from(kafka_topics, EXAMPLES, left[0].offset, partition)
    kept = [record for record in rest if record.partition != partition or record in left]
    with structlog.testing.capture_logs() as logs:
        _, metrics = await life(harness, kept)
    gone = (committed[partition], left[0].offset)
    assert measured(metrics, "learn_lost_records_total") == gone[1] - gone[0] > 0
    (entry,) = (one for one in logs if "lost" in one["event"])
    assert (entry["topic"], entry["partition"], entry["offsets"]) == (EXAMPLES, partition, gone)
    rebuilt = await rebuild(harness.broker, str(tmp_path), lambda _: SPEC)
    assert rebuilt.equal, "the journal tells what was learned, and it was not these"


async def test_examples_since_a_new_base_that_are_gone_are_counted(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """The base was trained for longer than the topic keeps them: its line begins behind them, and says so once."""
    harness = await LearnerHarness.make(kafka_topics.settings(), tmp_path / "snapshots")
    await life(harness, harness.records)
    await archive(harness, tmp_path / "archive", harness.records[:ARCHIVED])
    base = train(tmp_path / "archive", tmp_path / "snapshots")
    oldest = max(record.offset for record in harness.records if record.partition == 1) - 1
    await retained_from(kafka_topics, EXAMPLES, oldest, 1)
    _, metrics = await life(harness, harness.records)
    assert measured(metrics, "learn_bases_total") == 1
    assert measured(metrics, "learn_lost_records_total") == oldest - base.offsets[1] > 0
    assert (await rebuild(harness.broker, str(harness.root), lambda _: SPEC)).equal


# --------------------------------------------------------------------------------------------- archiver and calibrator


async def log_of(topics: TestTopics, count: int) -> tuple[Broker, list[InputRecord]]:
    """Records of five examples in partition 0, each bringing 5 s."""
    broker = await find_broker(topics.settings())
    records = list[InputRecord]()
    async with shared_writer(broker) as writer:
        for at in range(count):
            value = example_rows(5, seed=at).to_record(SPEC.hash, START_MS + 5_000 * at).encode()
            (offset,) = await writer.write([Outgoing(EXAMPLES, value, partition=0)])
            records.append(InputRecord(EXAMPLES, 0, offset, value, START_MS))
    return broker, records


async def archived(broker: Broker, folder: Path, parts: Sequence[Sequence[InputRecord]]) -> WorkerMetrics:
    """An archiver's metrics after one life."""
    metrics = WorkerMetrics(CollectorRegistry())
    config = ArchiveConfig(archive_rows=1_000, archive_interval_s=900.0)
    runner = ArchiveRunner(broker, SPEC, config, archive_store_of(str(folder)), metrics)
    await runner.on_assigned(frozenset({0}))
    for records in parts:
        await runner.work(list(records))
    await runner.on_revoked()
    return metrics


async def calibrated(broker: Broker, parts: Sequence[Sequence[InputRecord]]) -> WorkerMetrics:
    """A calibrator's metrics after one life."""
    metrics = WorkerMetrics(CollectorRegistry())
    async with shared_writer(broker) as writer:
        runner = CalibrateRunner(broker, writer, SPEC, KEEPS, 1.0, metrics)
        await runner.on_assigned(frozenset({0}))
        for records in parts:
            await runner.work(list(records))
    return metrics


async def counted(broker: Broker, records: Sequence[InputRecord]) -> bool:
    """Whether the newest published state is the sum of these records, and of nothing else."""
    expected = PartitionCalibrator(0, KEEPS, 1.0, plan=SPEC.slice_plan)
    for record in records:
        rows, watermark_ms = decode_examples(record.value, SPEC)
        expected.step(rows, record.offset, watermark_ms)
    newest = msgspec.msgpack.decode((await values(broker, CALIBRATION))[-1], type=CalibrationRecord)
    return bool(newest.state == expected.clicks.to_bytes())


async def test_what_the_archive_lacks_for_ever_is_counted(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Before its start, and while it was behind; the rest is archived, each row once."""
    broker, records = await log_of(kafka_topics, 12)
    await archived(broker, tmp_path, [records[:2]])
    await retained_from(kafka_topics, EXAMPLES, 4)
    with structlog.testing.capture_logs() as logs:
        metrics = await archived(broker, tmp_path, [records[4:6], records[9:]])
        assert measured(metrics, "archive_lost_records_total") == 2
        (entry,) = (one for one in logs if one["log_level"] == "warning")
        assert entry["offsets"] == (2, 4)
    assert len(read_examples(tmp_path)) == 5 * (2 + 2 + 3)


async def test_retention_that_overtakes_the_archiver_is_counted(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """The consumer is put to the oldest offset in the middle of its work."""
    broker, records = await log_of(kafka_topics, 12)
    await retained_from(kafka_topics, EXAMPLES, 9)
    metrics = await archived(broker, tmp_path, [records[9:]])
    assert measured(metrics, "archive_lost_records_total") == 9
    other = await archived(broker, tmp_path / "other", [records[:6], records[9:]])
    assert measured(other, "archive_lost_records_total") == 3, "0 to 5 were read before"


async def test_what_the_calibrator_lacks_for_ever_is_counted(kafka_topics: TestTopics) -> None:
    """Its state goes on with what is left, and a warning names the offsets."""
    broker, records = await log_of(kafka_topics, 12)
    await calibrated(broker, [records[:2]])
    await retained_from(kafka_topics, EXAMPLES, 5)
    with structlog.testing.capture_logs() as logs:
        metrics = await calibrated(broker, [records[5:]])
    assert measured(metrics, "calibration_lost_records_total") == 3
    (entry,) = (one for one in logs if one["log_level"] == "warning")
    assert entry["offsets"] == (2, 5)
    assert "calibration" in entry["event"]
    assert await counted(broker, [*records[:2], *records[5:]])


async def test_what_the_calibrator_lacks_and_the_log_holds_is_counted_in(kafka_topics: TestTopics) -> None:
    """The group had committed more than the state holds, as when its topic was created again."""
    broker, records = await log_of(kafka_topics, 8)
    metrics = await calibrated(broker, [records[5:]])
    assert await counted(broker, records)
    assert measured(metrics, "calibration_rows_total") == 5 * 8
    assert measured(metrics, "calibration_lost_records_total") == 0
