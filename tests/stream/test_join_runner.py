"""The join's shell over a real broker and Redis, without Faust: what is kept when steps repeat or break off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from stream.broker import Broker, find_broker
from stream.examples import ExampleRows, concat
from stream.examples_log import decode_examples
from stream.inbox import Assigned, InputRecord
from stream.join import JoinConfig
from stream.join_runner import JoinRunner
from stream.metrics import WorkerMetrics
from stream.producer import RecordProducer
from stream.session_store import RedisSessionStore
from stream.sessions import Fence, SessionKeys
from stream.topics import CLICKS, EXAMPLES, IMPRESSIONS, SERVED
from tests.brokers import TestTopics
from tests.stream.rig import SPEC, START_MS, Shown, events, serve, silent, values

CONFIG = JoinConfig(click_window_s=60)


class CutOffError(RuntimeError):
    """Stands for the end of the process."""


@dataclass
class Joiner:
    """A runner without a group, what it was fed, and the users it left in Redis."""

    broker: Broker
    make: Callable[[], JoinRunner]
    redis: Redis
    runner: JoinRunner = field(init=False)
    log: list[InputRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runner = self.make()

    def record(self, topic: str, partition: int, value: bytes) -> InputRecord:
        """The next record of a partition."""
        offset = sum(one.place == (topic, partition) for one in self.log)
        self.log.append(InputRecord(topic, partition, offset, value, START_MS))
        return self.log[-1]

    def impressions(self, shown: Shown, rows: list[int], partition: int) -> InputRecord:
        """The displays of some rows as one batch."""
        return self.record(IMPRESSIONS, partition, events(self._of(shown, rows, 100)).encode())

    def clicks(self, shown: Shown, rows: list[int], partition: int) -> InputRecord:
        """Clicks on some rows as one batch."""
        return self.record(CLICKS, partition, events(self._of(shown, rows, 1_100)).encode())

    @staticmethod
    def _of(shown: Shown, rows: list[int], after_ms: int) -> list[tuple[int, int, int]]:
        return [(shown.impression_id[i], shown.ts_ms[i] + after_ms, shown.user_key[i]) for i in rows]

    def time(self, partition: int, watermark_ms: int) -> list[InputRecord]:
        """Nothing earlier follows, on the inputs that hold the watermark."""
        quiet = events([], watermark_ms).encode()
        return [
            self.record(SERVED, partition, silent(watermark_ms).encode()),
            self.record(IMPRESSIONS, partition, quiet),
            self.record(CLICKS, partition, quiet),
        ]

    async def examples(self) -> ExampleRows:
        """Everything on the examples topic."""
        parts = [decode_examples(v, SPEC)[0] for v in await values(self.broker, EXAMPLES, self.broker.partitions)]
        return concat([ExampleRows.empty(SPEC.id_columns, SPEC.dense_inputs), *parts])

    async def users(self, shown: Shown, partition: int) -> Any:
        """The states of the users shown to, (U,) USER in the order of their keys."""
        none = np.zeros(0, np.uint64)
        store = RedisSessionStore(self.redis, SPEC, self.broker.partitions)
        keys = SessionKeys(np.unique(np.array(shown.user_key, np.uint64)), none, none)
        return (await store.load(partition, keys)).users


@pytest.fixture
async def joiner(kafka_topics: TestTopics, redis_url: str) -> AsyncIterator[Joiner]:
    """A runner over fresh topics and an empty Redis; ``make`` makes another over the same."""
    broker = await find_broker(kafka_topics.settings(redis_url))
    async with AsyncExitStack() as stack:
        redis: Redis = Redis.from_url(redis_url)
        stack.push_async_callback(redis.aclose)
        producer = RecordProducer(broker)
        await producer.start()
        stack.push_async_callback(producer.stop)

        def make() -> JoinRunner:
            store = RedisSessionStore(redis, SPEC, broker.partitions)
            return JoinRunner(broker, producer, store, SPEC, CONFIG, WorkerMetrics(CollectorRegistry()), None)

        yield Joiner(broker, make, redis)


def one_partition(users: int, partitions: int) -> tuple[Shown, int]:
    """Rows of some users that share a partition."""
    shown = serve(range(1, 60), [START_MS] * 59, partitions, first_id=1)
    partition = max(shown.record, key=lambda p: shown.record[p].rows)
    keys = shown.record[partition].arrays()["user_key"].tolist()[:users]
    mine = [shown.user_key.index(key) + 1 for key in keys]
    return serve(mine, [START_MS + 1_000 * i for i in range(users)], partitions, first_id=101), partition


async def test_a_repeated_impression_changes_no_session(joiner: Joiner) -> None:
    """Twice in one record, before its served row, after it, after its click: each display counts once."""
    shown, partition = one_partition(3, joiner.broker.partitions)
    early = joiner.impressions(shown, [0, 1, 1], partition)
    await joiner.runner.work([Assigned(frozenset([partition])), early])
    await joiner.runner.work([joiner.impressions(shown, [0, 2], partition)])
    await joiner.runner.work([joiner.record(SERVED, partition, shown.record[partition].encode())])
    await joiner.runner.work([joiner.impressions(shown, [2, 0], partition), joiner.clicks(shown, [0], partition)])
    await joiner.runner.work([joiner.impressions(shown, [0], partition), *joiner.time(partition, START_MS + 300_000)])
    await joiner.runner.work([joiner.impressions(shown, [0, 1, 2], partition)])
    assert (await joiner.users(shown, partition))["session_impressions"].tolist() == [1, 1, 1]
    assert len(await joiner.examples()) == 3


def _broken_off(after: int) -> Callable[..., Awaitable[Fence]]:
    """A store's `step` that works ``after`` times."""
    works = RedisSessionStore.step
    left = [after]

    async def step(self: RedisSessionStore, *arguments: Any) -> Fence:
        if not left[0]:
            raise CutOffError
        left[0] -= 1
        return await works(self, *arguments)

    return step


@pytest.mark.parametrize("steps_before", [0, 1])
async def test_a_death_between_examples_and_sessions_loses_and_doubles_no_display(
    joiner: Joiner, monkeypatch: pytest.MonkeyPatch, steps_before: int
) -> None:
    """What the next runner reads again is folded once, whether its row is settled by now or not."""
    shown, partition = one_partition(3, joiner.broker.partitions)
    served = joiner.record(SERVED, partition, shown.record[partition].encode())
    first = joiner.impressions(shown, [0], partition)
    then = [joiner.impressions(shown, [1, 2, 2], partition), joiner.clicks(shown, [0, 1], partition)]
    again = joiner.impressions(shown, [0, 1], partition)
    monkeypatch.setattr(RedisSessionStore, "step", _broken_off(steps_before))
    steps = [[served, first], [*then, again]] if steps_before else [[served, first, *then, again]]
    for step in steps[:-1]:
        await joiner.runner.work([*step])
    with pytest.raises(CutOffError):
        await joiner.runner.work([*steps[-1]])
    monkeypatch.undo()
    assert len(await joiner.examples()) == 2

    joiner.runner = joiner.make()
    await joiner.runner.work([Assigned(frozenset([partition])), *joiner.log])
    await joiner.runner.work([joiner.impressions(shown, [0, 1, 2], partition)])
    await joiner.runner.work([*joiner.time(partition, START_MS + 300_000)])
    users = await joiner.users(shown, partition)
    assert users["session_impressions"].tolist() == [1, 1, 1]
    assert users["outcome_count"].tolist() == [1, 1, 1]
    assert int(users["session_clicks"].sum()) == 2
    assert len(await joiner.examples()) == 3


async def test_records_ahead_of_their_assignment_are_settled_in_the_same_step(joiner: Joiner) -> None:
    """In a replay nothing else may follow that would settle them: everybody waits for this very watermark."""
    shown, partition = one_partition(2, joiner.broker.partitions)
    served = joiner.record(SERVED, partition, shown.record[partition].encode())
    ahead = [served, joiner.impressions(shown, [0, 1], partition), *joiner.time(partition, START_MS + 300_000)]
    await joiner.runner.work([*ahead, Assigned(frozenset([partition]))])
    assert len(await joiner.examples()) == 2
    assert joiner.runner.committable()[IMPRESSIONS, partition] > 0


async def test_a_partition_that_went_elsewhere_is_let_go(joiner: Joiner) -> None:
    """A record under way at the change brings a partition back; the next assignment ends that."""
    shown, partition = one_partition(1, joiner.broker.partitions)
    late = joiner.impressions(shown, [0], partition)
    other = (partition + 1) % joiner.broker.partitions
    await joiner.runner.work([late, Assigned(frozenset([other]))])
    assert joiner.runner.committable() == {}
    assert (await joiner.users(shown, partition))["session_impressions"].tolist() == [0]
