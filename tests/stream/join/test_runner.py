"""The join's shell over a real broker and Redis, without a group: what is kept when steps repeat or break off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.clicks.store import RedisClickStore
from stream.join.config import JoinConfig
from stream.join.runner import JoinRunner
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord
from stream.kafka.log_writer import FencedError, Outgoing, shared_writer
from stream.metrics import WorkerMetrics
from stream.records.examples import ExampleRows, concat
from stream.records.examples_codec import SPLIT_ROWS, SettledLogError, decode_examples
from stream.records.topics import CLICKS, CONVERSIONS, EXAMPLES, IMPRESSIONS, JOURNAL, SERVED
from stream.records.wire import JournalRecord, OffsetRange
from tests import brokers
from tests.brokers import TestTopics
from tests.stream.measured import measured
from tests.stream.pipeline import SPEC, START_MS, Shown, events, example_rows, serve, silent, until, values

CONFIG = JoinConfig(display_horizon_s=60)
NOW_MS = START_MS + 86_400_000  # when the records are read


@dataclass
class Joiner:
    """Runners without a group, what they were fed, and the topics and the Redis that they left."""

    broker: Broker
    redis: Redis
    config: JoinConfig = CONFIG
    most_unlearned_rows: int = 0
    now_ms: Callable[[], int] | None = None
    runner: JoinRunner = field(init=False)
    made: list[JoinRunner] = field(default_factory=list)
    metrics: WorkerMetrics = field(init=False)
    log: list[InputRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.again()

    def again(self) -> None:
        """Another life, which knows nothing of the one before; that one is not told."""
        self.metrics = WorkerMetrics(CollectorRegistry())
        clicks = RedisClickStore(self.redis, SPEC, self.config.conversion_horizon_s)
        self.runner = JoinRunner(
            self.broker,
            clicks,
            SPEC,
            self.config,
            self.metrics,
            self.now_ms,
            most_unlearned_rows=self.most_unlearned_rows,
        )
        self.made.append(self.runner)

    def record(self, topic: str, partition: int, value: bytes) -> InputRecord:
        """The next record of a partition."""
        offset = sum(one.topic_partition == (topic, partition) for one in self.log)
        self.log.append(InputRecord(topic, partition, offset, value, NOW_MS))
        return self.log[-1]

    def served(self, shown: Shown, partition: int) -> InputRecord:
        """What was served on a partition."""
        return self.record(SERVED, partition, shown.record[partition].encode())

    def impressions(self, shown: Shown, rows: list[int], partition: int) -> InputRecord:
        """The displays of some rows as one batch."""
        return self.record(IMPRESSIONS, partition, events(self._of(shown, rows, 100)).encode())

    def clicks(self, shown: Shown, rows: list[int], partition: int, after_ms: int = 1_100) -> InputRecord:
        """Clicks on some rows as one batch."""
        return self.record(CLICKS, partition, events(self._of(shown, rows, after_ms)).encode())

    def conversions(self, shown: Shown, rows: list[int], partition: int, after_ms: int = 5_000) -> InputRecord:
        """Conversions of some rows as one batch."""
        return self.record(CONVERSIONS, partition, events(self._of(shown, rows, after_ms)).encode())

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

    async def outcomes(self) -> list[tuple[int, int]]:
        """(kind, impression id) of every example."""
        rows = await self.examples()
        return list(zip(rows.kind.tolist(), rows.impression_id.tolist(), strict=True))


@pytest.fixture
async def joiner(kafka_topics: TestTopics, redis_url: str) -> AsyncIterator[Joiner]:
    """A runner over fresh topics and an empty Redis."""
    broker = await find_broker(kafka_topics.settings(redis_url))
    async with AsyncExitStack() as stack:
        redis: Redis = Redis.from_url(redis_url)
        stack.push_async_callback(redis.aclose)
        made = Joiner(broker, redis)
        yield made
        for runner in made.made:
            await runner.on_revoked()


def one_partition(users: int, partitions: int) -> tuple[Shown, int]:
    """Rows of some users that share a partition."""
    shown = serve(range(1, 60), [START_MS] * 59, partitions, first_id=1)
    partition = max(shown.record, key=lambda p: shown.record[p].rows)
    keys = shown.record[partition].arrays()["user_key"].tolist()[:users]
    mine = [shown.user_key.index(key) + 1 for key in keys]
    return serve(mine, [START_MS + 1_000 * i for i in range(users)], partitions, first_id=101), partition


def exposures(shown: Shown) -> list[tuple[int, int]]:
    """The outcomes of displays of all that was shown."""
    return [(EXPOSURE, key) for key in shown.impression_id]


async def test_a_repeated_impression_is_exposed_once(joiner: Joiner) -> None:
    """Twice in one record, before its served row, after it, after its click, after its exposure."""
    shown, partition = one_partition(3, joiner.broker.partitions)
    early = joiner.impressions(shown, [0, 1, 1], partition)
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([early])
    await joiner.runner.work([joiner.impressions(shown, [0, 2], partition)])
    await joiner.runner.work([joiner.served(shown, partition)])
    await joiner.runner.work([joiner.impressions(shown, [2, 0], partition), joiner.clicks(shown, [0], partition)])
    await joiner.runner.work([joiner.impressions(shown, [0], partition), *joiner.time(partition, START_MS + 300_000)])
    await joiner.runner.work([joiner.impressions(shown, [0, 1, 2], partition)])
    assert sorted(await joiner.outcomes()) == [*exposures(shown), (CLICK, shown.impression_id[0])]


async def test_an_exposure_is_stored_in_the_step_of_its_display(joiner: Joiner) -> None:
    """No window, no later record: the learner has it as soon as the inputs have come so far."""
    shown, partition = one_partition(1, joiner.broker.partitions)
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([*joiner.time(partition, START_MS)])
    await joiner.runner.work([joiner.served(shown, partition), joiner.impressions(shown, [0], partition)])
    assert await joiner.outcomes() == exposures(shown)


@pytest.mark.parametrize("store_down", [False, True])
async def test_another_life_goes_on_where_the_log_ends(
    joiner: Joiner, monkeypatch: pytest.MonkeyPatch, store_down: bool
) -> None:
    """Everything read again: no exposure, click or conversion twice, and none lost, with the store behind, too."""
    shown, partition = one_partition(3, joiner.broker.partitions)

    async def down(*_: object) -> int:
        raise RedisConnectionError("gone")

    if store_down:
        monkeypatch.setattr(RedisClickStore, "put", down)
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([joiner.served(shown, partition)])
    await joiner.runner.work([joiner.impressions(shown, [0, 1], partition)])
    await joiner.runner.work([joiner.clicks(shown, [0], partition)])
    monkeypatch.undo()
    one, two, _ = shown.impression_id
    assert await joiner.outcomes() == [(EXPOSURE, one), (EXPOSURE, two), (CLICK, one)]
    for _ in range(2):
        joiner.again()
        await joiner.runner.on_assigned(frozenset([partition]))
        await joiner.runner.work([*joiner.log])
    converted = joiner.conversions(shown, [0, 0], partition)
    await joiner.runner.work([joiner.impressions(shown, [0, 1, 2], partition), converted])
    await joiner.runner.work([*joiner.time(partition, START_MS + 300_000), joiner.conversions(shown, [0], partition)])
    joiner.again()
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([*joiner.log])
    again = joiner.conversions(shown, [0], partition, after_ms=6_000)
    await joiner.runner.work([joiner.conversions(shown, [0], partition), again, again])
    assert sorted(await joiner.outcomes()) == [*exposures(shown), (CLICK, one), (CONVERSION, one), (CONVERSION, one)]
    rows = await joiner.examples()
    assert rows.known_ms[rows.kind == CONVERSION].tolist() == [START_MS + 5_000, START_MS + 6_000]
    assert rows.delay_ms[rows.kind == CONVERSION].tolist() == [3_900, 4_900]


async def test_a_late_click_takes_its_columns_from_the_log(joiner: Joiner) -> None:
    """Of what this life wrote, and of what an earlier one did; the columns are those that were served."""
    shown, partition = one_partition(2, joiner.broker.partitions)
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work(
        [
            joiner.served(shown, partition),
            joiner.impressions(shown, [0, 1], partition),
            *joiner.time(partition, START_MS + 120_000),
        ]
    )
    await joiner.runner.work([joiner.clicks(shown, [0], partition, after_ms=130_000)])
    joiner.again()
    joiner.clicks(shown, [1], partition, after_ms=140_000)
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([*joiner.log])
    rows = await joiner.examples()
    assert rows.kind.tolist() == [EXPOSURE, EXPOSURE, CLICK, CLICK]
    assert rows.impression_id.tolist() == [*shown.impression_id, *shown.impression_id]
    assert (rows.ids[:2] == rows.ids[2:]).all()
    assert (rows.logit[:2] == rows.logit[2:]).all()


async def test_a_log_of_labelled_examples_is_refused(joiner: Joiner) -> None:
    """Read as exposures and clicks it would teach every impression wrong: the error says what to do."""
    rows = example_rows(2, seed=0)
    old = msgspec.msgpack.decode(rows.to_record(SPEC.hash, START_MS).encode())
    value = msgspec.msgpack.encode({**old, "label": b"\0\1"})
    async with shared_writer(joiner.broker) as writer:
        await writer.write([Outgoing(EXAMPLES, value, partition=1)])
    with pytest.raises(SettledLogError, match=rf"{EXAMPLES}\[1\] 0 .*delete the topic.*MILLSTREAM_TOPIC_PREFIX"):
        await joiner.runner.on_assigned(frozenset([1]))


async def test_conversions_wait_while_the_store_is_away(joiner: Joiner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples go out meanwhile; once the store answers, what it missed comes from the log."""
    shown, partition = one_partition(2, joiner.broker.partitions)

    async def away(*_: object) -> int:
        raise RedisConnectionError("gone")

    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([joiner.served(shown, partition)])
    for name in ("put", "find", "fence"):
        monkeypatch.setattr(RedisClickStore, name, away)
    await joiner.runner.work([joiner.impressions(shown, [0, 1], partition), joiner.clicks(shown, [0], partition)])
    await joiner.runner.work([joiner.conversions(shown, [0], partition), *joiner.time(partition, START_MS + 900_000)])
    assert len(await joiner.examples()) == 3
    assert measured(joiner.metrics, "click_store_failures_total") > 0
    monkeypatch.undo()

    async def converted() -> bool:
        await joiner.runner.tick()
        return len(await joiner.examples()) == 4

    await until(converted, "the conversion was joined")
    assert (await joiner.outcomes())[-1] == (CONVERSION, shown.impression_id[0])


async def test_what_lies_before_the_first_record_is_read_from_the_log(joiner: Joiner) -> None:
    """What was under way at a change of partitions comes ahead of what is read from the committed offset on."""
    shown, partition = one_partition(3, joiner.broker.partitions)
    written = [joiner.served(shown, partition)]
    written += [joiner.impressions(shown, [row], partition) for row in (0, 1, 2)]
    async with shared_writer(joiner.broker) as writer:
        for record in written:
            assert record.value is not None
            await writer.write([Outgoing(record.topic, record.value, partition=partition)])
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([written[3]])
    await joiner.runner.work(written)
    await joiner.runner.work([*joiner.time(partition, START_MS + 300_000)])
    assert sorted(await joiner.outcomes()) == exposures(shown)


async def test_a_partition_that_went_elsewhere_is_let_go(joiner: Joiner) -> None:
    """The next assignment is all that is ours."""
    shown, partition = one_partition(1, joiner.broker.partitions)
    other = (partition + 1) % joiner.broker.partitions
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([joiner.served(shown, partition), joiner.impressions(shown, [0], partition)])
    await joiner.runner.on_assigned(frozenset([other]))
    assert {partition for _, partition in joiner.runner.offsets_to_commit()} <= {other}
    assert len(await joiner.examples()) == 0


async def test_a_zombie_is_fenced_and_writes_nothing(joiner: Joiner, apache_kafka: brokers.Broker) -> None:
    """Once another has taken the partition over, the step of the former owner fails as a whole."""
    shown, partition = one_partition(2, joiner.broker.partitions)
    zombie = joiner.runner
    await zombie.on_assigned(frozenset([partition]))
    await zombie.work([joiner.served(shown, partition)])
    joiner.again()
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([*joiner.log])
    rest = [joiner.impressions(shown, [0, 1], partition), joiner.clicks(shown, [0], partition)]
    with pytest.raises(FencedError, match="another worker writes"):
        await zombie.work(rest)
    assert len(await joiner.examples()) == 0
    await joiner.runner.work([*rest, *joiner.time(partition, START_MS + 300_000)])
    assert len(await joiner.examples()) == 3
    joiner.made.remove(zombie)


async def test_another_life_restores_only_what_still_matters(joiner: Joiner, apache_kafka: brokers.Broker) -> None:
    """The place to read the examples from travels with the committed offsets."""
    joiner.config = replace(CONFIG, click_horizon_s=60)
    joiner.again()
    for at in range(20):
        hour_ms = START_MS + at * 3_600_000
        later = serve([1], [hour_ms], joiner.broker.partitions, first_id=1_000 + at)
        (first,) = later.record
        await joiner.runner.on_assigned(frozenset([first]))
        await joiner.runner.work(
            [joiner.served(later, first), joiner.impressions(later, [0], first), *joiner.time(first, hour_ms + 900_000)]
        )
    joiner.again()
    await joiner.runner.on_assigned(frozenset([first]))
    await joiner.runner.work([])
    assert 0 < measured(joiner.metrics, "join_exposed_rows") <= 2
    assert len(await joiner.examples()) == 20


async def test_a_learner_that_is_behind_holds_the_inputs_back(joiner: Joiner) -> None:
    """Once it has journalled anything: then until it has caught up."""
    joiner.most_unlearned_rows = 2
    joiner.again()
    shown, partition = one_partition(6, joiner.broker.partitions)

    async def journalled(up_to: int) -> None:
        learned = OffsetRange(partition=partition, from_offset=0, from_row=0, to_offset=up_to, to_row=0)
        step = JournalRecord(version=1, rows=1, ranges=[learned], watermark_ms=0)
        async with shared_writer(joiner.broker) as writer:
            await writer.write([Outgoing(JOURNAL, msgspec.msgpack.encode(step))])

    async def paused() -> bool:
        await joiner.runner.tick()
        await joiner.runner.work([joiner.impressions(shown, [5], partition)])
        return bool(joiner.runner.inbox.paused)

    async def let_through() -> bool:
        return not await paused()

    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([joiner.served(shown, partition)])
    await joiner.runner.tick()
    rows = [joiner.impressions(shown, [0, 1, 2, 3], partition), joiner.clicks(shown, [0], partition)]
    await joiner.runner.work(rows)
    assert not await paused()
    await journalled(0)
    await asyncio.sleep(0.2)
    await joiner.runner.tick()
    await joiner.runner.work([joiner.clicks(shown, [1, 2, 3], partition)])
    await until(paused, "the inputs were paused")
    assert measured(joiner.metrics, "join_unlearned_rows") == 3
    await journalled(1_000)
    await until(let_through, "the inputs were read again")


async def test_at_half_of_the_memory_inputs_that_are_ahead_wait(joiner: Joiner) -> None:
    """Served rows far ahead of their clicks would only lie in memory; the slowest input is read on."""
    joiner.config = replace(CONFIG, join_memory_bytes=16 << 20)
    joiner.again()
    partition = 0
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([*joiner.time(partition, START_MS)])
    at, first_id = 0, 1_000
    while not joiner.runner.inbox.paused:
        users = [1] * 4_000
        more = serve(users, [START_MS + 1_000 + at] * len(users), 1, first_id=first_id)
        more = Shown(more.impression_id, more.user_key, more.ts_ms, {partition: more.record[0]})
        await joiner.runner.work([joiner.served(more, partition)])
        at, first_id = at + 10_000, first_id + len(users)
    assert joiner.runner.inbox.paused == frozenset([(SERVED, partition)])
    taken = measured(joiner.metrics, "join_memory_bytes")
    assert 8 << 20 < taken < 16 << 20
    await joiner.runner.work([*joiner.time(partition, START_MS + 3_600_000)])

    async def let_through() -> bool:
        await joiner.runner.tick()
        return joiner.runner.inbox.paused == frozenset()

    await until(let_through, "all inputs were read again")


async def test_live_inputs_far_ahead_of_the_clicks_wait_whatever_the_memory(joiner: Joiner) -> None:
    """What lags holds the exposures back; what is ahead of it stays on the broker, until it has come nearer."""
    now_ms = START_MS + 600_000
    joiner.now_ms = lambda: now_ms
    joiner.again()
    partition = 0
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([*joiner.time(partition, START_MS + 540_000)])
    assert joiner.runner.inbox.paused == frozenset()
    promise = silent(START_MS + 600_001).encode(), events([], START_MS + 600_001).encode()
    ahead = [
        joiner.record(topic, partition, value) for topic, value in zip((SERVED, IMPRESSIONS), promise, strict=True)
    ]
    await asyncio.sleep(0.06)
    await joiner.runner.work(ahead)
    assert joiner.runner.inbox.paused == frozenset()
    now_ms = START_MS + 600_001
    await asyncio.sleep(0.06)
    await joiner.runner.tick()
    assert joiner.runner.inbox.paused == frozenset([(SERVED, partition), (IMPRESSIONS, partition)])
    assert measured(joiner.metrics, "join_paused_partitions") == 2
    now_ms += 29_000  # those that wait are silent, and hold nothing
    await asyncio.sleep(0.06)
    await joiner.runner.work([joiner.record(CLICKS, partition, events([], START_MS + 540_001).encode())])
    assert joiner.runner.inbox.paused == frozenset()


async def test_a_large_step_is_written_in_parts_that_late_clicks_find_again(joiner: Joiner) -> None:
    """More exposures at once than a record may hold; this life and a later one find those of each part."""
    count = 2 * SPLIT_ROWS + 10
    shown = serve([1] * count, [START_MS] * count, joiner.broker.partitions, first_id=1_000)
    (partition,) = shown.record
    everything = [*range(count)]
    displayed = [joiner.served(shown, partition), joiner.impressions(shown, everything, partition)]
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([*displayed])
    await joiner.runner.work(joiner.time(partition, START_MS + 120_000))
    assert await joiner.outcomes() == exposures(shown)
    at_hand = [0, SPLIT_ROWS - 1, SPLIT_ROWS]
    await joiner.runner.work([joiner.clicks(shown, at_hand, partition)])
    await joiner.runner.on_revoked()
    joiner.again()
    from_the_log = [1, SPLIT_ROWS + 1, 2 * SPLIT_ROWS, count - 1]
    await joiner.runner.on_assigned(frozenset([partition]))
    await joiner.runner.work([joiner.clicks(shown, from_the_log, partition)])
    clicked = [*at_hand, *from_the_log]
    assert (await joiner.outcomes())[count:] == [(CLICK, shown.impression_id[row]) for row in clicked]
    rows = await joiner.examples()
    assert (rows.logit[count:] == rows.logit[clicked]).all()
    sizes = [decode_examples(v, SPEC)[0] for v in await values(joiner.broker, EXAMPLES, joiner.broker.partitions)]
    assert max(map(len, sizes)) == SPLIT_ROWS
