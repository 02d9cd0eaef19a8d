"""Workers that come and go while others read, on the broker that comes with the package."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from stream.agents.agent import Agent
from stream.agents.faust_source import FaustSource
from stream.agents.inbox import Inbox
from stream.embedded.broker import EmbeddedBroker
from stream.kafka.admin import ensure_topics
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_writer import LogWriter, Outgoing, shared_writer
from stream.metrics import WorkerMetrics
from stream.records.topics import EXAMPLES, topic_table
from stream.servers.settings import StreamSettings
from tests.stream.pipeline import until

PARTITIONS = 4


class Noting:
    """A runner that notes what it owns and what it was given."""

    topics = (EXAMPLES,)

    def __init__(self, step_s: float = 0.0) -> None:
        self.inbox = Inbox(max_items=1) if step_s else Inbox()
        self.partitions: frozenset[int] = frozenset()
        self.values: list[bytes | None] = []
        self._step_s = step_s

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Note them."""
        self.partitions = partitions

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Note what they hold, in no hurry."""
        await asyncio.sleep(self._step_s)
        self.values += [record.value for record in records]

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Nothing."""

    async def tick(self) -> None:
        """Nothing."""

    async def on_revoked(self) -> None:
        """They are no longer ours."""
        self.partitions = frozenset()

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """Nothing: who takes over reads all again."""
        return {}


@pytest.fixture
async def embedded() -> AsyncIterator[Broker]:
    """An embedded broker with all topics."""
    async with EmbeddedBroker() as started:
        await ensure_topics(started.bootstrap, topic_table(PARTITIONS))
        yield await find_broker(StreamSettings(kafka_bootstrap_servers=started.bootstrap, partitions=PARTITIONS))


@asynccontextmanager
async def member(
    broker: Broker, failures: list[BaseException], step_s: float = 0.0
) -> AsyncIterator[tuple[Agent, Noting]]:
    """A member of the group, as a worker starts and stops it."""
    runner = Noting(step_s)
    agent = Agent("sessions", broker, runner, failures.append, WorkerMetrics(CollectorRegistry()), source="faust")
    starting = asyncio.create_task(agent.start())
    try:
        yield agent, runner
        await agent.finish()
    finally:
        starting.cancel()
        await agent.abandon()
        await agent.leave()


async def seeking(agent: Agent) -> None:
    """What Faust does whenever a rebalance stops its flow, without a pause: some of it meets no assignment."""
    assert isinstance(agent.source, FaustSource)
    while True:
        await agent.source.app.consumer.perform_seek()
        await asyncio.sleep(0)


async def test_a_worker_lives_through_others_that_join_and_leave(embedded: Broker) -> None:
    """A seek that finds its partitions taken away is no failure: the next assignment begins at the commits."""
    failures: list[BaseException] = []
    async with shared_writer(embedded) as writer:
        await writer.write([Outgoing(EXAMPLES, b"%d" % p, partition=p) for p in range(PARTITIONS)])
    async with member(embedded, failures) as (agent, runner):

        async def owns_all() -> bool:
            assert failures == []
            return len(runner.partitions) == PARTITIONS

        await until(owns_all, "the first worker has all partitions")
        seeks = asyncio.create_task(seeking(agent))
        for _ in range(2):
            async with member(embedded, failures) as (_, other):

                async def shared(other: Noting = other) -> bool:
                    assert failures == []
                    assert not seeks.done(), seeks.exception()
                    return len(runner.partitions | other.partitions) == PARTITIONS and bool(other.partitions)

                await until(shared, "the partitions are shared")
            await until(owns_all, "the first worker has all partitions again")
        assert not seeks.done(), seeks.exception()
        seeks.cancel()
        await asyncio.wait([seeks])
    assert failures == []
    assert set(runner.values) == {b"%d" % p for p in range(PARTITIONS)}


async def test_a_worker_that_is_behind_lives_through_others_that_join(embedded: Broker) -> None:
    """What was fetched and waits for room is thrown away, and is no failure: it is fetched again."""
    failures: list[BaseException] = []
    async with (
        shared_writer(embedded) as writer,
        _writing(writer) as written,
        member(embedded, failures, step_s=0.2) as (_, runner),
    ):

        async def owns_all() -> bool:
            return len(runner.partitions) == PARTITIONS

        async def is_behind() -> bool:
            assert failures == []
            return bool(runner.values) and len(written) > len(runner.values) + 300

        await until(owns_all, "the first worker has all partitions")
        await until(is_behind, "more waits than there is room for")
        async with member(embedded, failures) as (_, other):

            async def shared() -> bool:
                assert failures == []
                return bool(runner.partitions and other.partitions)

            await until(shared, "the partitions are shared")
    assert failures == []


@asynccontextmanager
async def _writing(writer: LogWriter) -> AsyncIterator[list[int]]:
    """Records, one after another; their numbers."""
    written: list[int] = []

    async def write() -> None:
        for number in itertools.count():
            await writer.write([Outgoing(EXAMPLES, b"%d" % number, partition=number % PARTITIONS)])
            written.append(number)

    task = asyncio.create_task(write())
    try:
        yield written
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
