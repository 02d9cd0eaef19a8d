"""What a worker says while all is well: a line of trouble means trouble."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from stream.servers.settings import StreamSettings
from tests import brokers
from tests.brokers import TestTopics
from tests.stream.pipeline import base_snapshot, front, said, worker

_INFO = re.compile(r"\[info +\]")
IDLE_S = 8.0  # the interval between two lines of what is none: a few seconds


async def beat(settings: StreamSettings, for_s: float) -> None:
    """What serving says while nobody asks: that time goes on, by which the join writes its watermarks."""
    end_s = time.monotonic() + for_s
    async with front(settings) as sender:
        while time.monotonic() < end_s:
            await sender.pass_time(time.time_ns() // 1_000_000)
            await asyncio.sleep(0.3)


async def test_an_idle_worker_warns_of_nothing(
    kafka_topics: TestTopics, apache_kafka: brokers.Broker, redis_url: str, tmp_path: Path
) -> None:
    """Over a good start, a while without records, and a stop, on one node of Kafka."""
    base_snapshot(tmp_path / "snapshots")
    log = tmp_path / "worker.log"
    async with worker(kafka_topics.environment(redis_url), tmp_path / "snapshots", log, clock="wall") as running:
        await beat(kafka_topics.settings(redis_url), IDLE_S)
        assert await running.stop() == 0
    assert [line for line in said(log).splitlines() if not _INFO.search(line)] == []
