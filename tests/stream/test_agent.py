"""One agent over a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest
from prometheus_client import CollectorRegistry

from stream.agent import Agent, AgentCrashedError
from stream.broker import Broker, find_broker
from stream.faust_source import FaustSource
from stream.inbox import Assigned, Inbox, InputRecord, Place, Runner
from stream.log_reader import LogReader
from stream.metrics import WorkerMetrics
from stream.source import SourceKind
from stream.topics import EXAMPLES
from tests.brokers import TestTopics


class Idle:
    """A runner that does nothing."""

    topics = (EXAMPLES,)

    def __init__(self, fault: BaseException | None = None) -> None:
        self.inbox = Inbox()
        self.fault = fault

    async def work(self, items: Sequence[InputRecord | Assigned]) -> None:
        """Drop them, or raise the fault."""
        if self.fault is not None:
            raise self.fault

    async def tick(self) -> None:
        """Nothing."""

    async def give_up(self) -> None:
        """Nothing."""

    def committable(self) -> Mapping[Place, int]:
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
        await app.source._app.consumer.crash(cause)
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


async def test_a_log_reader_that_reads_nothing_closes_like_any_other(kafka_topics: TestTopics) -> None:
    """An assignment may bring nothing that is new."""
    broker = await find_broker(kafka_topics.settings())
    for _ in range(5):
        async with LogReader(broker):
            pass
