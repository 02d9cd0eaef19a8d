"""The sessions' shell over a real broker and Redis, without a group: the states are the fold of the log."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import structlog
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.session_state import COUNTER, USER
from stream.embedded.redis import EmbeddedRedis
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogEndsEarlierError
from stream.kafka.log_writer import LogWriter, Outgoing, shared_writer
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples_codec import SettledLogError, decode_examples
from stream.records.topics import EXAMPLES
from stream.servers.circuit_breaker import RETRY_AFTER_S
from stream.sessions import runner as session_runner
from stream.sessions import step as session_step
from stream.sessions.fold import SessionFold, SessionStates
from stream.sessions.in_memory import MemorySessionStore
from stream.sessions.runner import SessionRunner
from stream.sessions.store import KeyNames, RedisSessionStore
from tests.brokers import TestTopics
from tests.learners.small_spec import SMALL
from tests.stream.created_again import created_again
from tests.stream.measured import measured
from tests.stream.retained import retained_from
from tests.stream.session_events import START_MS, Event, rows_of

PATIENCE_S = 30.0
PARTITIONS = 2  # of the topic's, that the tests use


class CutOffError(RuntimeError):
    """Stands for the end of the process."""


def record_events(rng: np.random.Generator, partition: int, at: int) -> list[Event]:
    """What one record has: events of a few users of a partition, with silences that sessions and states end in."""
    now = START_MS + at * 40_000 + 7_300_000 * (at // 12)
    events = []
    for _ in range(int(rng.integers(0, 9))):
        kind = [EXPOSURE, EXPOSURE, EXPOSURE, CLICK, CONVERSION][rng.integers(5)]
        user = partition + PARTITIONS * int(rng.integers(1, 4))
        ts_ms = now - (kind != EXPOSURE) * int(rng.integers(60_000))
        impression = int(rng.integers(1, 20))
        events.append(Event(kind, user, int(rng.integers(4)), int(rng.integers(3)), ts_ms, now, impression))
    return events


def value_of(events: list[Event], watermark_ms: int, spec_hash: str = SMALL.hash) -> bytes:
    """A record of the examples topic."""
    return rows_of(events).to_record(spec_hash, watermark_ms).encode()


@dataclass
class World:
    """A log of examples, what its fold is, and a Redis."""

    broker: Broker
    redis: Redis
    writer: LogWriter
    records: list[InputRecord] = field(default_factory=list)
    folded: MemorySessionStore = field(default_factory=lambda: MemorySessionStore(SMALL, PARTITIONS))
    metrics: WorkerMetrics = field(default_factory=lambda: WorkerMetrics(CollectorRegistry()))
    rows: int = 0

    async def write(self, count: int, seed: int = 3) -> list[InputRecord]:
        """So many records more, of both partitions; some mean nothing here, some tell nothing."""
        rng, fold, before = np.random.default_rng(seed), SessionFold(SMALL), len(self.records)
        for at in range(before, before + count):
            partition = int(rng.integers(PARTITIONS))
            events = record_events(rng, partition, at)
            watermark_ms = START_MS + at
            if at % 7 in (2, 5):
                value = b"junk" if at % 7 == 2 else value_of(events, watermark_ms, "another")
            else:
                value = value_of(events, watermark_ms)
                self.folded.step(fold, rows_of(events), partition)
                self.rows += len(events)
            (offset,) = await self.writer.write([Outgoing(EXAMPLES, value, partition=partition)])
            self.records.append(InputRecord(EXAMPLES, partition, offset, value, START_MS))
        return self.records[before:]

    def runner(self, client: Redis | None = None) -> SessionRunner:
        """A worker without a group."""
        store = RedisSessionStore(client or self.redis, SMALL, PARTITIONS)
        return SessionRunner(self.broker, store, SMALL, self.metrics)

    async def assigned(self, client: Redis | None = None) -> SessionRunner:
        """A worker that has both partitions."""
        runner = self.runner(client)
        await runner.on_assigned(frozenset(range(PARTITIONS)))
        return runner

    async def caught_up(self, runner: SessionRunner) -> None:
        """Let its time pass until it needs the log no longer."""
        deadline = time.monotonic() + PATIENCE_S
        while runner.inbox.paused:
            assert time.monotonic() < deadline, f"the states have not caught up with the log after {PATIENCE_S} s"
            await asyncio.sleep(0.05)
            await runner.tick()

    async def check(self, client: Redis | None = None) -> None:
        """Redis holds the fold of the log, byte for byte, and nothing else, behind fences at its end."""
        client = client or self.redis
        store, keys = RedisSessionStore(client, SMALL, PARTITIONS), self.folded.export().states.keys
        states = 0
        for partition in range(PARTITIONS):
            expected, found = self.folded.load(partition, keys), await store.load(partition, keys)
            assert found.users.tobytes() == expected.users.tobytes()
            assert found.counters.tobytes() == expected.counters.tobytes()
            assert await store.fence(partition) == self.end(partition)
            states += int((expected.users["seen_ms"] > 0).sum() + (expected.counters["ts_ms"] > 0).sum())
        names = [name async for name in client.scan_iter("millstream:*:[uc]:*")]
        assert len(names) == states

    def end(self, partition: int) -> int:
        """The offset after the partition's last record."""
        return max((record.offset + 1 for record in self.records if record.partition == partition), default=0)

    def counted(self, name: str, **labels: str) -> float:
        """What a counter stands at."""
        return measured(self.metrics, name, **labels)


@pytest.fixture
async def world(kafka_topics: TestTopics, redis_url: str) -> AsyncIterator[World]:
    """An empty log and an empty Redis."""
    broker = await find_broker(kafka_topics.settings(redis_url))
    client: Redis = Redis.from_url(redis_url)
    async with shared_writer(broker) as writer:
        yield World(broker, client, writer)
        await client.aclose()


def chunks(records: Sequence[InputRecord], size: int) -> list[list[InputRecord]]:
    """What the inbox gives at once."""
    return [list(records[at : at + size]) for at in range(0, len(records), size)]


@pytest.mark.parametrize("size", [1, 5, 64])
async def test_the_states_are_the_fold_of_the_log(world: World, size: int) -> None:
    """However many records come at once; what may be committed is what the store holds; each row counts once."""
    runner = await world.assigned()
    for items in chunks(await world.write(60), size):
        await runner.work(items)
    await world.check()
    assert runner.offsets_to_commit() == {(EXAMPLES, p): world.end(p) for p in range(PARTITIONS)}
    assert world.counted("session_rows_total") == world.rows
    assert runner.inbox.paused == frozenset()
    watermark = measured(world.metrics, "session_watermark_timestamp_seconds")
    assert START_MS / 1000 < watermark <= (START_MS + 60) / 1000


async def test_steps_are_cut_by_their_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the cut into steps nor the pauses of reading the log show in the states."""
    await world.write(30)
    monkeypatch.setattr(session_step, "MAX_STEP_ROWS", 7)
    monkeypatch.setattr(session_runner, "READ_SLICE_S", 0.0)
    runner = await world.assigned()
    assert len(runner.inbox.paused) == PARTITIONS, "it reads on in its own time, and nothing comes meanwhile"
    await world.caught_up(runner)
    await world.check()
    assert world.counted("session_steps_total") > world.rows / 20
    more = await world.write(30)
    await runner.work([*more])
    await world.check()


class _Dying(RedisSessionStore):
    """Dies at its n-th step, before or after Redis took it."""

    left = 0
    after = False

    async def apply(self, partition: int, expected: int, fence: int, states: SessionStates) -> int:
        self.left -= 1
        last = self.left == 0
        if last and not self.after:
            raise CutOffError
        current = await super().apply(partition, expected, fence, states)
        if last:
            raise CutOffError
        return current


async def _life(world: World, runner: SessionRunner, committed: Mapping[TopicPartition, int]) -> None:
    """A worker is assigned what there is, and then is brought records, also new ones."""
    await runner.on_assigned(frozenset(range(PARTITIONS)))
    await world.write(40)
    for items in chunks([r for r in world.records if r.offset >= committed.get(r.topic_partition, 0)], 2):
        await runner.work(items)


@pytest.mark.parametrize("after", [False, True], ids=["before Redis took the step", "nothing committed after it"])
async def test_a_death_at_a_step_loses_and_doubles_nothing(
    world: World, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths while the log is read and while records come; those come again from the last commit, or from the start."""
    monkeypatch.setattr(session_step, "MAX_STEP_ROWS", 20)
    await world.write(60)
    committed: dict[TopicPartition, int] = {}
    for number, commits in ((3, True), (8, False), (12, True)):
        dying = _Dying(world.redis, SMALL, PARTITIONS)
        dying.left, dying.after = number, after
        runner = SessionRunner(world.broker, dying, SMALL, world.metrics)
        with pytest.raises(CutOffError):
            await _life(world, runner, committed)
        committed = dict(runner.offsets_to_commit()) if commits else {}
    await (await world.assigned()).work([*world.records])
    await world.check()


async def test_what_comes_again_changes_nothing(world: World) -> None:
    """Records delivered twice, and all of them once more to another worker."""
    records = await world.write(40)
    runner = await world.assigned()
    for items in chunks(records, 6):
        await runner.work([*items, *items])
    await runner.on_revoked()
    await (await world.assigned()).work([*records])
    await world.check()
    assert world.counted("session_rows_total") == world.rows


async def test_records_that_nobody_brings_are_read_from_the_log(world: World) -> None:
    """The group had committed further than the store holds."""
    records = await world.write(40)
    runner = world.runner()
    await runner.on_assigned(frozenset(range(PARTITIONS)))
    await runner.work([*records[30:35], *records[35:]])
    await world.check()


async def test_an_idle_log_is_folded_at_the_assignment(world: World) -> None:
    """Nothing new need come for serving to read what there is."""
    await world.write(40)
    runner = await world.assigned()
    await world.check()
    assert runner.offsets_to_commit() == {(EXAMPLES, p): world.end(p) for p in range(PARTITIONS)}


async def test_a_restarted_worker_knows_how_far_it_is_in_event_time(world: World) -> None:
    """The record before the fence tells, although it is folded already."""
    for partition in range(PARTITIONS):
        await world.writer.write([Outgoing(EXAMPLES, value_of([], START_MS + partition), partition=partition)])
    for _ in range(2):
        await world.assigned()
        assert measured(world.metrics, "session_watermark_timestamp_seconds") == START_MS / 1000
        world.metrics.gauge("session_watermark_timestamp_seconds").set(0)


@pytest.mark.parametrize("kept", [0, 20], ids=["emptied", "gone back to an older state"])
async def test_a_store_that_went_back_is_folded_again_from_the_log(world: World, kept: int) -> None:
    """Whatever Redis forgot, the states become what they would have been."""
    records = await world.write(60)
    await world.redis.flushall()
    runner = world.runner()
    await runner.on_assigned(frozenset(range(PARTITIONS)))
    await runner.work([*records[:kept]])
    older = {name: await world.redis.dump(name) or b"" for name in await world.redis.keys()} if kept else {}
    more = await world.write(20, seed=4)
    await runner.work([*records[kept:], *more[:10]])
    await world.redis.flushall()
    for name, value in older.items():
        await world.redis.restore(name, 0, value)
    await runner.work([*more[10:]])
    await world.caught_up(runner)
    await world.check()


async def test_two_workers_on_one_partition_leave_the_fold_of_the_log(world: World) -> None:
    """One that does not know that it lost its partitions writes nothing that the other does not write."""
    owner, zombie = await world.assigned(), await world.assigned()
    for number, items in enumerate(chunks(await world.write(80), 4)):
        if number % 3 == 0:
            await asyncio.gather(owner.work([*items]), zombie.work([*items]))
        elif number % 3 == 1:
            await zombie.work([*items])
            await owner.work([*items])
        else:
            await owner.work([*items])
    for runner in (zombie, owner):
        await world.caught_up(runner)
    await world.check()
    assert world.counted("session_rewinds_total", reason="ahead") > 0
    assert world.counted("session_rewinds_total", reason="behind") == 0


async def test_a_partition_that_went_elsewhere_is_let_go(world: World) -> None:
    """The next assignment is all that is ours: of the other one nothing is committed any more."""
    runner = await world.assigned()
    await world.write(20)
    await runner.on_assigned(frozenset([1]))
    await runner.work([record for record in world.records if record.partition == 1])
    assert runner.offsets_to_commit() == {(EXAMPLES, 1): world.end(1)}
    assert await RedisSessionStore(world.redis, SMALL, PARTITIONS).fence(0) == 0


async def test_records_that_mean_nothing_here_are_passed_over(world: World) -> None:
    """Another feature spec's, and what is no record: the fence moves behind them, and nothing is kept."""
    runner = await world.assigned()
    for at, value in enumerate([value_of([], START_MS, "another"), b"junk", b""]):
        (offset,) = await world.writer.write([Outgoing(EXAMPLES, value, partition=0)])
        await runner.work([InputRecord(EXAMPLES, 0, offset, value, START_MS)])
        assert runner.offsets_to_commit()[EXAMPLES, 0] == at + 1
    assert world.counted("session_rows_total") == 0
    assert [name async for name in world.redis.scan_iter("*:[uc]:*")] == []


async def test_a_log_of_labelled_examples_ends_the_worker(world: World) -> None:
    """Its rows have no displays to count; the message names the record and the remedy."""
    runner = await world.assigned()
    settled = msgspec.msgpack.encode({"record": "examples", "label": b""})
    with pytest.raises(SettledLogError, match=r"ads.examples.v1\[0\] 4 is .*python -m stream topics --create"):
        await runner.work([InputRecord(EXAMPLES, 0, 4, settled, START_MS)])


@pytest.mark.parametrize("key", ["fence", "sequence", "changes"])
@pytest.mark.parametrize("value", [b"abc", b"-7", b"9" * 30, [b"a", b"list"]])
async def test_a_store_that_holds_what_no_worker_wrote_is_folded_again_from_the_log(
    world: World, key: str, value: bytes | list[bytes]
) -> None:
    """Its states may not be folded into: they are forgotten, and no row counts twice."""
    runner = await world.assigned()
    await runner.work(await world.write(20))
    for number in range(PARTITIONS):
        name = getattr(KeyNames(SMALL, number), key)
        await world.redis.delete(name)
        await (world.redis.rpush(name, *value) if isinstance(value, list) else world.redis.set(name, value))
    await runner.work(await world.write(10, seed=4))
    await world.caught_up(runner)
    again = await world.assigned()
    await world.caught_up(again)
    if key != "sequence" or value == b"abc":  # a number is one, whoever wrote it
        await world.check()


async def test_a_log_that_ends_before_the_fence_ends_the_worker(world: World) -> None:
    """The states are of another log: to fold this one into them would mix both."""
    await world.write(10)
    nothing = SessionStates(SessionFold(SMALL).keys([]), np.zeros(0, USER), np.zeros(0, COUNTER))
    await RedisSessionStore(world.redis, SMALL, PARTITIONS).apply(1, 0, 500, nothing)
    with pytest.raises(LogEndsEarlierError, match=r"ends before offset (499|500),"):
        await world.assigned()


@pytest.mark.usefixtures("apache_kafka")
async def test_what_a_log_holds_that_was_cut_is_folded_on_what_it_held(world: World, kafka_topics: TestTopics) -> None:
    """The fence goes back to the cut, once; the states hold both."""
    await world.write(40)
    runner = await world.assigned()
    await created_again(kafka_topics)
    world.records.clear()
    async with shared_writer(world.broker) as world.writer:
        await world.write(20)
        for partition in range(PARTITIONS):
            await runner.log_cut(EXAMPLES, partition, 0)
        await world.caught_up(runner)
        await world.check()
        await runner.work(await world.write(10, seed=4))
        await world.check()


@pytest.mark.usefixtures("apache_kafka")
async def test_examples_that_retention_took_are_passed_over_and_counted(world: World, kafka_topics: TestTopics) -> None:
    """What the log still holds is folded; the warning names the offsets, once."""
    await world.write(40)
    partition_records = [record for record in world.records if record.partition == 0]
    await retained_from(kafka_topics, EXAMPLES, partition_records[9].offset)
    with structlog.testing.capture_logs() as logs:
        runner = await world.assigned()
        await world.assigned()
    lost = [entry for entry in logs if "lost records" in entry["event"]]
    assert [(entry["partition"], entry["offsets"]) for entry in lost] == [(0, (0, partition_records[9].offset))]
    assert world.counted("session_lost_records_total") == partition_records[9].offset
    assert runner.offsets_to_commit()[EXAMPLES, 0] == world.end(0)
    kept = MemorySessionStore(SMALL, PARTITIONS)
    fold = SessionFold(SMALL)
    for record in partition_records[9:]:
        try:
            rows, _ = decode_examples(record.value, SMALL)
        except RecordError:
            continue
        kept.step(fold, rows, 0)
    keys = kept.export().states.keys
    found = await RedisSessionStore(world.redis, SMALL, PARTITIONS).load(0, keys)
    assert found.users.tobytes() == kept.load(0, keys).users.tobytes()
    assert found.counters.tobytes() == kept.load(0, keys).counters.tobytes()


# ------------------------------------------------------------------------------------------------ a store that is away


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedRedis, Redis]]:
    """A Redis that may be killed, and a client of it."""
    async with EmbeddedRedis(tmp_path) as server:
        client: Redis = Redis.from_url(server.url)
        yield server, client
        await client.aclose()


async def test_a_redis_that_was_away_gets_what_it_missed(world: World, own_redis: tuple[EmbeddedRedis, Redis]) -> None:
    """Killed and started again, empty: the worker waits, pauses its partitions, and folds the log again."""
    server, client = own_redis
    runner = await world.assigned(client)
    await runner.work([*await world.write(30)])
    await server.stop()
    committed = dict(runner.offsets_to_commit())
    for items in chunks(await world.write(30, seed=4), 10):
        started = time.monotonic()
        await runner.work(items)
        await runner.tick()
        assert time.monotonic() - started < 2.5
    assert {partition for _, partition in runner.inbox.paused} == set(range(PARTITIONS))
    assert runner.offsets_to_commit() == committed
    assert world.counted("session_store_failures_total") > 0
    async with EmbeddedRedis(server.data_dir) as again:
        assert again.url == server.url
        await world.caught_up(runner)
        await world.check(client)
        assert world.counted("session_rewinds_total", reason="behind") == PARTITIONS


async def test_a_redis_that_hangs_holds_up_neither_a_stop_nor_a_cancellation(
    world: World, own_redis: tuple[EmbeddedRedis, Redis]
) -> None:
    """It gets a second to answer; what it carries out once nobody waits for it any more does no harm."""
    server, client = own_redis
    runner = await world.assigned(client)
    await runner.work([*await world.write(30)])
    os.kill(server.pid, signal.SIGSTOP)
    try:
        more = await world.write(30, seed=4)
        started = time.monotonic()
        await runner.work([*more[:10]])
        await runner.work([*more[10:]])
        await runner.tick()
        await runner.on_revoked()
        assert time.monotonic() - started < 2.5
        await asyncio.sleep(2 * RETRY_AFTER_S + 1.0)  # it is left alone for as long as it was waited for
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await runner.on_assigned(frozenset(range(PARTITIONS)))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    runner = await world.assigned(client)
    await world.caught_up(runner)
    await world.check(client)
