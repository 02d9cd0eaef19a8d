"""A log that lost its end: the broker died before its disk held it, and new records get the old ones' offsets."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from learners.examples.kinds import CLICK
from stream.agents.agent import Agent
from stream.agents.inbox import Runner
from stream.agents.source import SourceKind
from stream.clicks.store import RedisClickStore
from stream.embedded.process import free_port
from stream.join.config import JoinConfig
from stream.join.runner import JoinRunner
from stream.kafka.admin import ensure_topics
from stream.kafka.broker import Broker, find_broker
from stream.kafka.committed import committed_offsets
from stream.kafka.log_reader import LogReader
from stream.metrics import WorkerMetrics
from stream.records.examples_codec import decode_examples
from stream.records.topics import CLICKS, EXAMPLES
from stream.servers.settings import StreamSettings
from tests.apache_kafka import ApacheKafka
from tests.brokers import skip_or_fail
from tests.stream.measured import measured
from tests.stream.pipeline import SPEC, START_MS, Front, Shown, events, front, serve, until

CLICKED = 20


@dataclass
class MortalKafka:
    """A broker that is killed and loses the end of a log."""

    kafka: ApacheKafka
    settings: StreamSettings

    async def loses_half_of(self, topic: str) -> int:
        """Kill it, cut the newest half of a topic's only segment off, start it; where the log ends now."""
        await self.kafka.kill()
        (segment,) = (self.kafka.data_dir / "log" / f"{self.settings.topic(topic)}-0").glob("*.log")
        os.truncate(segment, segment.stat().st_size // 2)
        await self.kafka.start()
        async with LogReader(await find_broker(self.settings)) as log:
            return await log.end(topic, 0)


@pytest.fixture(scope="module")
async def started_kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApacheKafka]:
    """A broker of this module's own, on a port that it keeps."""
    if not os.environ.get("KAFKA_HOME"):
        skip_or_fail("KAFKA_HOME is not set: only a broker that is killed loses the end of a log")
    home, data = Path(os.environ["KAFKA_HOME"]), tmp_path_factory.mktemp("kafka")
    async with ApacheKafka(home, port=free_port(), data_dir=data) as kafka:
        yield kafka


@pytest.fixture
async def mortal_kafka(started_kafka: ApacheKafka) -> MortalKafka:
    """Topics of one partition under a prefix of the test's own."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    settings = StreamSettings(kafka_bootstrap_servers=started_kafka.bootstrap, partitions=1, topic_prefix=prefix)
    await ensure_topics(started_kafka.bootstrap, settings.topics())
    return MortalKafka(started_kafka, settings)


@asynccontextmanager
async def running(
    name: str, settings: StreamSettings, source: SourceKind, made: Callable[[Broker, WorkerMetrics], Runner]
) -> AsyncIterator[WorkerMetrics]:
    """An agent as the worker runs it, stopped in order at the end; its metrics."""
    metrics, broker = WorkerMetrics(CollectorRegistry()), await find_broker(settings)
    failures: list[BaseException] = []
    agent = Agent(name, broker, made(broker, metrics), failures.append, metrics, source=source)
    await agent.start()
    try:
        yield metrics
        await agent.finish()
    finally:
        await agent.abandon()
        await agent.leave()
    assert failures == []


def joined(redis: Redis) -> Callable[[Broker, WorkerMetrics], Runner]:
    """The join."""
    config = JoinConfig()

    def made(broker: Broker, metrics: WorkerMetrics) -> Runner:
        clicks = RedisClickStore(redis, SPEC, config.conversion_horizon_s)
        return JoinRunner(broker, clicks, SPEC, config, metrics, None)

    return made


async def clicked(settings: StreamSettings) -> list[int]:
    """The impressions whose clicks stand in the examples topic, as often as they do."""
    found: list[int] = []
    async with LogReader(await find_broker(settings)) as log:
        async for record in log.read(EXAMPLES, 0):
            rows, _ = decode_examples(record.value, SPEC)
            found += rows.impression_id[rows.kind == CLICK].tolist()
    return found


async def click(front: Front, shown: Shown, rows: Sequence[int]) -> None:
    """A record a click."""
    for row in rows:
        one = (shown.impression_id[row], shown.ts_ms[row] + 1_100, shown.user_key[row])
        await front.send(CLICKS, events([one]).encode(), 0)


async def until_clicked(settings: StreamSettings, shown: Shown, count: int) -> None:
    """Wait until the first clicks are joined, each once."""

    async def all_joined() -> bool:
        return len(await clicked(settings)) >= count

    await until(all_joined, f"{count} clicks are joined")
    assert sorted(await clicked(settings)) == shown.impression_id[:count]


async def until_committed(settings: StreamSettings) -> None:
    """Wait until the group has committed that the clicks were read."""
    broker = await find_broker(settings)

    async def committed() -> bool:
        found = await committed_offsets(broker, broker.group("join"), [CLICKS], 0)
        return CLICKS in found and f'"{CLICKS}.next_offset":{CLICKED}' in found[CLICKS].metadata

    await until(committed, "the join has committed how far it read")


@pytest.fixture
def shown() -> Shown:
    """Ads that were displayed."""
    return serve(range(1, 1 + 3 * CLICKED), [START_MS] * 3 * CLICKED, 1, first_id=1)


async def test_clicks_of_a_log_that_was_cut_while_it_was_read_are_joined(
    mortal_kafka: MortalKafka, redis_url: str, shown: Shown
) -> None:
    """They have the offsets of clicks that were joined before, and are no redeliveries."""
    settings = mortal_kafka.settings
    async with Redis.from_url(redis_url) as redis, running("join", settings, "faust", joined(redis)) as metrics:
        async with front(settings) as sender:
            await sender.show(shown)
            await click(sender, shown, range(CLICKED))
        await until_clicked(settings, shown, CLICKED)
        end = await mortal_kafka.loses_half_of(CLICKS)
        assert 0 < end < CLICKED
        async with front(settings) as sender:
            await click(sender, shown, range(CLICKED, 3 * CLICKED))
        await until_clicked(settings, shown, 3 * CLICKED)
        assert measured(metrics, "log_cut_records_total", agent="join", topic=CLICKS) == CLICKED - end


@pytest.mark.parametrize("new", [CLICKED // 4, 2 * CLICKED])
async def test_clicks_of_a_log_that_was_cut_while_nobody_read_it_are_joined(
    mortal_kafka: MortalKafka, redis_url: str, shown: Shown, new: int
) -> None:
    """The commit lies behind the end, or the log has grown beyond it again meanwhile; no click need follow."""
    settings = mortal_kafka.settings
    async with Redis.from_url(redis_url) as redis, front(settings) as sender:
        async with running("join", settings, "aiokafka", joined(redis)):
            await sender.show(shown)
            await click(sender, shown, range(CLICKED))
            await until_clicked(settings, shown, CLICKED)
            await until_committed(settings)
        end = await mortal_kafka.loses_half_of(CLICKS)
    async with Redis.from_url(redis_url) as redis, front(settings) as sender:
        await click(sender, shown, range(CLICKED, CLICKED + new))
        async with running("join", settings, "aiokafka", joined(redis)) as metrics:
            await until_clicked(settings, shown, CLICKED + new)
            assert measured(metrics, "log_cut_records_total", agent="join", topic=CLICKS) == CLICKED - end
