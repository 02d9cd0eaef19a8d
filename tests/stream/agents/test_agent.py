"""One agent over a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest
from prometheus_client import CollectorRegistry

from stream.agents.agent import Agent, AgentCrashedError
from stream.agents.faust_source import FaustSource
from stream.agents.inbox import Inbox, Runner
from stream.agents.source import SourceKind
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogReader
from stream.metrics import WorkerMetrics
from stream.records.topics import EXAMPLES
from tests.brokers import TestTopics


class Idle:
    """A runner that does nothing, or fails at its first partitions."""

    topics = (EXAMPLES,)

    def __init__(self, fault: BaseException | None = None) -> None:
        self.inbox = Inbox()
        self.fault = fault

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Nothing, or raise the fault."""
        if self.fault is not None:
            raise self.fault

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Drop them."""

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Nothing."""

    async def tick(self) -> None:
        """Nothing."""

    async def on_revoked(self) -> None:
        """Nothing."""

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """Nothing."""
        return {}


def agent(broker: Broker, runner: Runner, failed: Callable[[BaseException], None], source: SourceKind) -> Agent:
    """An agent of no other consequence."""
    return Agent("idle", broker, runner, failed, WorkerMetrics(CollectorRegistry()), source=source)


SOURCES: tuple[SourceKind, ...] = ("faust", "aiokafka")


async def test_the_end_of_what_reads_the_topics_is_a_failure_of_the_agent(kafka_topics: TestTopics) -> None:
    """A consumer that crashed would leave a process that lives, is healthy, and reads nothing."""
    failures: asyncio.Queue[BaseException] = asyncio.Queue()
    broker = await find_broker(kafka_topics.settings())
    app = agent(broker, Idle(), failures.put_nowait, "faust")
    await app.start()
    try:
        cause = OSError("the consumer's thread ended")
        assert isinstance(app.source, FaustSource)
        await app.source.app.consumer.crash(cause)
        failure = await failures.get()
        assert isinstance(failure, AgentCrashedError)
        assert failure.__cause__ is cause
        assert "idle" in str(failure)
    finally:
        await app.abandon()
        await app.leave()


@pytest.mark.parametrize("source", SOURCES)
async def test_a_step_that_is_cancelled_from_within_is_a_failure_too(
    kafka_topics: TestTopics, source: SourceKind
) -> None:
    """A library that leaks a CancelledError would end the task that works the inbox off, and nobody would see it."""
    failures: asyncio.Queue[BaseException] = asyncio.Queue()
    broker = await find_broker(kafka_topics.settings())
    app = agent(broker, Idle(asyncio.CancelledError()), failures.put_nowait, source)
    await app.start()
    assert isinstance(await failures.get(), AgentCrashedError)
    await app.abandon()
    await app.leave()
    assert failures.empty()  # the cancellations of a stop are none


@pytest.mark.parametrize("source", SOURCES)
async def test_a_source_that_has_not_started_yet_reads_nothing(kafka_topics: TestTopics, source: SourceKind) -> None:
    """The agent asks from its start on, and the thread of Faust's consumer begins later, seconds on a busy machine."""
    app = agent(await find_broker(kafka_topics.settings()), Idle(), lambda _: None, source)
    assert app.source.assignment() == frozenset()
    assert app.source.unread() == {}
    await app.leave()


async def test_a_seek_whose_partitions_are_taken_away_is_no_failure(kafka_topics: TestTopics) -> None:
    """Faust seeks at every rebalance, and another one may come meanwhile: aiokafka then knows no assignment."""
    failures: list[BaseException] = []
    app = agent(await find_broker(kafka_topics.settings()), Idle(), failures.append, "faust")
    await app.start()
    assert isinstance(app.source, FaustSource)
    consumer, thread = app.source.app.consumer, app.source.app.consumer._thread

    async def lose_all() -> None:
        thread._consumer.unsubscribe()

    seek = asyncio.create_task(consumer.perform_seek())
    await asyncio.gather(thread.call_thread(lose_all), seek)
    await consumer.perform_seek()
    await app.abandon()
    await app.leave()
    assert failures == []


class Noting(Idle):
    """A runner that notes what it is called with, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[frozenset[int] | list[tuple[int, int]]] = []

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Note them."""
        self.calls.append(partitions)

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Note where they stood."""
        self.calls.append([(record.partition, record.offset) for record in records])


class NoSource:
    """A source whose part the test plays."""

    failure = None

    def __init__(self, *_: object) -> None:
        pass

    async def start(self, listener: Agent) -> None:
        """Assign partition 0 at once, with a record of it and one of another partition ahead of the notice."""
        await listener.arrived([record(0, 5)])
        await listener.arrived([record(1, 7)])
        await asyncio.sleep(0.05)
        listener.assigned(frozenset([0]))

    async def stop(self) -> None:
        """Nothing."""

    def assignment(self) -> frozenset[TopicPartition]:
        """Nothing."""
        return frozenset()

    def unread(self) -> Mapping[TopicPartition, int]:
        """Nothing."""
        return {}

    async def seek(self, tp: TopicPartition, offset: int) -> None:
        """Nothing."""


def record(partition: int, offset: int) -> InputRecord:
    """A record of no content."""
    return InputRecord(EXAMPLES, partition, offset, b"", 0)


class Failing(Noting):
    """A runner whose step fails once it is let: it has taken in what its log does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()
        self.stored: list[str] = []

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Wait, then fail."""
        await self.let.wait()
        raise OSError("fenced")

    async def tick(self) -> None:
        """Note that more is learned."""
        if self.let.is_set():
            self.stored.append("tick")

    async def on_revoked(self) -> None:
        """Note that a snapshot is taken."""
        self.stored.append("revoked")


@pytest.fixture
async def noting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Agent, Noting]]:
    """A started agent, which reads nothing by itself, and its runner."""
    monkeypatch.setattr("stream.agents.agent._source", lambda _: NoSource)
    broker, runner = Broker(bootstrap="nowhere", prefix="", partitions=2, idempotent=False), Noting()
    app = agent(broker, runner, lambda _: None, "faust")
    await app.start()
    yield app, runner
    await app.abandon()


async def test_records_ahead_of_their_assignment_come_right_behind_it(noting: tuple[Agent, Noting]) -> None:
    """In a replay nothing else may follow: everybody waits for the watermark that these records bring."""
    _, runner = noting
    assert runner.calls == [frozenset([0]), [(0, 5)]]


async def test_records_of_a_partition_that_is_not_ours_reach_no_runner(noting: tuple[Agent, Noting]) -> None:
    """What was under way when a partition went elsewhere is its new owner's; another assignment does not revive it."""
    app, runner = noting
    await app.arrived([record(1, 8)])
    await app.arrived([record(0, 6)])
    await asyncio.sleep(0.1)
    await app.revoked()
    await app.arrived([record(1, 20)])
    app.assigned(frozenset([1]))
    await asyncio.sleep(0.1)
    assert runner.calls[2:] == [[(0, 6)], frozenset([1]), [(1, 20)]]


async def test_after_a_step_that_failed_nothing_of_the_runner_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a revocation that waited for the step: a learner would snapshot versions that its journal lacks."""
    monkeypatch.setattr("stream.agents.agent._source", lambda _: NoSource)
    broker, runner = Broker(bootstrap="nowhere", prefix="", partitions=2, idempotent=False), Failing()
    failures: list[BaseException] = []
    app = agent(broker, runner, failures.append, "faust")
    starting = asyncio.create_task(app.start())
    await asyncio.sleep(0.2)  # the step is under way
    revocation = asyncio.create_task(app.revoked())
    await asyncio.sleep(0.05)
    runner.let.set()
    await asyncio.gather(starting, revocation)
    await app.arrived([record(0, 9)])
    await asyncio.sleep(0.3)
    assert [str(one) for one in failures] == ["fenced"]
    assert runner.stored == []
    await app.abandon()


async def test_a_log_reader_that_reads_nothing_closes_like_any_other(kafka_topics: TestTopics) -> None:
    """An assignment may bring nothing that is new."""
    broker = await find_broker(kafka_topics.settings())
    for _ in range(5):
        async with LogReader(broker):
            pass
