"""The learner's shell over a real broker, without Faust."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from stream.broker import find_broker
from stream.inbox import Assigned, InputRecord
from stream.learn_runner import LearnRunner
from stream.learning import LearningConfig
from stream.metrics import WorkerMetrics
from stream.producer import RecordProducer
from stream.topics import EXAMPLES
from tests.brokers import TestTopics
from tests.stream.rig import SPEC, START_MS, base_snapshot, example_rows


async def test_a_snapshot_that_cannot_be_written_stops_the_learner(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the next one is due before anybody looked: no later success hides it."""
    base_snapshot(tmp_path)
    broker = await find_broker(kafka_topics.settings())
    producer = RecordProducer(broker)
    await producer.start()
    config = LearningConfig(learn_batch_rows=8, snapshot_interval_s=60)
    runner = LearnRunner(broker, producer, SPEC, config, str(tmp_path), WorkerMetrics(CollectorRegistry()))
    failed = asyncio.Event()

    def full(*_: Any) -> None:
        loop.call_soon_threadsafe(failed.set)
        raise OSError("no space left on device")

    def records(offset: int) -> list[InputRecord | Assigned]:
        record = example_rows(8, seed=offset).to_record(SPEC.hash, START_MS + offset * 120_000).encode()
        return [InputRecord(EXAMPLES, p, offset, record, START_MS) for p in range(broker.partitions)]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr("stream.learn_runner.write_snapshot", full)
    try:
        await runner.work([Assigned(frozenset(range(broker.partitions))), *records(0)])
        await runner.work(records(1))
        await failed.wait()
        await asyncio.sleep(0.05)  # the task ends after its thread
        with pytest.raises(OSError, match="no space left"):
            await runner.work(records(2))
    finally:
        await producer.stop()
