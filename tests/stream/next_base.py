"""A stream that has lived, its archive, and a new base that waits beside its snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from learners.snapshots.snapshot import Snapshot, load_snapshot
from learners.training.base import BaseConfig
from learners.training.distributed import SingleProcess
from learners.training.fit import FitConfig
from learners.training.job import BaseJob, run
from stream.archive.part_buffer import ArchiveConfig
from stream.archive.runner import ArchiveRunner
from stream.archive.store import archive_store_of
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.metrics import WorkerMetrics
from tests.brokers import TestTopics
from tests.stream.learner_harness import FORGETFUL, LearnerHarness
from tests.stream.pipeline import SPEC

Committed = dict[TopicPartition, int]
ARCHIVED = 40  # records; the last 24 of the harness are not in the base


async def archive(harness: LearnerHarness, folder: Path, records: list[InputRecord]) -> None:
    """The archiver over some records."""
    metrics = WorkerMetrics(CollectorRegistry())
    runner = ArchiveRunner(harness.broker, SPEC, ArchiveConfig(), archive_store_of(str(folder)), metrics)
    await runner.on_assigned(frozenset(range(harness.broker.partitions)))
    await runner.work([*records])
    await runner.on_revoked()


def train(archive: Path, snapshots: Path, **options: Any) -> Snapshot:
    """What `python -m learners base` does; the base as it was written."""
    job = BaseJob(
        examples=str(archive),
        out=str(snapshots),
        config=BaseConfig(fit=FitConfig(batch_rows=64), click_window_s=2.0),
        model_config=FORGETFUL,
        **options,
    )
    trained = run(job, SingleProcess(), lambda done, total: None)
    assert trained is not None
    return load_snapshot(trained.written.url)


async def lived(topics: TestTopics, folder: Path) -> tuple[LearnerHarness, Committed]:
    """A learner of an untrained base that has learned all, and a trained one that waits beside its snapshots."""
    harness = await LearnerHarness.make(topics.settings(), folder / "snapshots")
    killed, committed = await harness.learn()
    assert not killed
    await archive(harness, folder / "archive", harness.records[:ARCHIVED])
    train(folder / "archive", folder / "snapshots")
    return harness, committed
