"""A learner whose examples are others than those that it learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from stream.learn.runner import LearnRunner
from stream.metrics import WorkerMetrics
from stream.records.topics import EXAMPLES
from tests.brokers import TestTopics
from tests.stream.created_again import created_again
from tests.stream.learner_harness import CONFIG, LearnerHarness
from tests.stream.measured import measured
from tests.stream.pipeline import SPEC


@pytest.mark.usefixtures("apache_kafka")
async def test_what_a_cut_log_holds_is_learned_and_a_kill_after_it_is_no_end(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """The journal of before names offsets that hold others: no restart leads over them."""
    settings, root = kafka_topics.settings(), tmp_path / "one"
    harness = await LearnerHarness.make(settings, root)
    everything = frozenset(range(harness.broker.partitions))
    metrics = WorkerMetrics(CollectorRegistry())
    runner = LearnRunner(harness.broker, SPEC, CONFIG, str(root), metrics)
    await runner.on_assigned(everything)
    for record in harness.records[:40]:
        await runner.work([record])
    before = measured(metrics, "learned_rows_total")
    await created_again(kafka_topics, only=EXAMPLES)
    others = await LearnerHarness.make(settings, tmp_path / "two")
    for partition in everything:
        await runner.log_cut(EXAMPLES, partition, 0)
    for record in others.records:
        await runner.work([record])
    assert measured(metrics, "learned_rows_total") - before > sum(map(len, others.rows.values())) / 2
    version = measured(metrics, "model_version")
    await runner.close()
    metrics = WorkerMetrics(CollectorRegistry())
    again = LearnRunner(harness.broker, SPEC, CONFIG, str(root), metrics)
    await again.on_assigned(everything)
    assert measured(metrics, "model_version") >= version
    await again.on_revoked()
