"""The worker process over a real broker and Redis: the whole stream, its stop, its restart, its bad input."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from numpy.typing import NDArray
from redis.asyncio import Redis
from typer.testing import CliRunner

from calibration.head import HeadCalibration
from learners.deepfm.model import DeepFM
from learners.examples.archive import read_examples
from learners.examples.kinds import CLICK, EXPOSURE
from learners.features.session_state import COUNTER, USER
from learners.features.shape import ModelShape
from learners.snapshots.snapshot import newest_snapshot
from stream.__main__ import app
from stream.embedded.broker import EmbeddedBroker
from stream.kafka.broker import Broker, find_broker
from stream.kafka.log_reader import LogReader
from stream.learn.rebuild import rebuild
from stream.records.deltas import DeltaAssembler
from stream.records.examples import ExampleRows, concat
from stream.records.examples_codec import decode_examples
from stream.records.topics import (
    CALIBRATION,
    CLICKS,
    CONVERSIONS,
    DEADLETTER,
    EXAMPLES,
    IMPRESSIONS,
    JOURNAL,
    SERVED,
    WEIGHTS,
)
from stream.records.wire import CalibrationRecord, DeadLetter, DeltaPart, JournalRecord, SnapshotNotice
from stream.sessions.fold import SessionKeys, SessionStates
from stream.sessions.store import RedisSessionStore
from tests.brokers import TestTopics
from tests.stream.pipeline import (
    SMALL,
    SPEC,
    START_MS,
    Front,
    Shown,
    Worker,
    base_snapshot,
    example_rows,
    front,
    said,
    serve,
    starting_worker,
    until,
    values,
    worker,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
MINUTE_MS = 60_000
USERS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def environment(topics: TestTopics, redis_url: str) -> dict[str, str]:
    """Horizons of a minute, small batches."""
    return {
        **topics.environment(redis_url),
        "MILLSTREAM_CLICK_WINDOW_S": "60",
        "MILLSTREAM_DISPLAY_HORIZON_S": "60",
        "MILLSTREAM_LEARN_INTERVAL_S": "10",
        "MILLSTREAM_LEARN_BATCH_ROWS": "8",
        "MILLSTREAM_ARCHIVE_ROWS": "5",
    }


async def examples_of(broker: Broker) -> ExampleRows:
    """All examples of the topic."""
    parts = [decode_examples(value, SPEC)[0] for value in await values(broker, EXAMPLES, broker.partitions)]
    return concat([ExampleRows.empty(SPEC.id_columns, SPEC.dense_inputs), *parts])


async def weights_of(broker: Broker) -> tuple[int, DeepFM]:
    """The base model after every delta of the topic, as serving would have it."""
    model, assembler = DeepFM(SMALL, ModelShape.of(SPEC)), DeltaAssembler(version=0, spec_hash=SPEC.hash)
    decoder = msgspec.msgpack.Decoder(DeltaPart | SnapshotNotice)
    for value in await values(broker, WEIGHTS):
        part = decoder.decode(value)
        if isinstance(part, DeltaPart) and (delta := assembler.add(part)) is not None:
            model.apply(delta)
    return assembler.version, model


async def letters_of(broker: Broker) -> list[DeadLetter]:
    """All dead letters."""
    return [msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(broker, DEADLETTER)]


async def joined(at: Front, running: Worker, rows: int, watermark_ms: int) -> None:
    """Pass time; return when the examples are there and the learner and the calibrator have seen that time."""
    await at.pass_time(watermark_ms)

    async def caught_up() -> bool:
        seen = await running.metrics()
        names = ("session", "learn", "calibration")
        times = [seen[f"millstream_{name}_watermark_timestamp_seconds"] for name in names]
        return min(times) * 1000 >= watermark_ms and len(await examples_of(at.broker)) >= rows

    await until(caught_up, f"{rows} examples were learned and calibrated")


async def check_the_whole(broker: Broker, snapshots: Path, impressions: int, clicks: int) -> None:
    """Every impression is one exposure, every click one; each is in one step, in the weights and the calibration."""
    examples, rows = await examples_of(broker), impressions + clicks
    kinds = Counter(zip(examples.kind.tolist(), examples.impression_id.tolist(), strict=True))
    assert max(kinds.values()) == 1
    assert Counter(kind for kind, _ in kinds) == {EXPOSURE: impressions, CLICK: clicks}
    journal = [msgspec.msgpack.decode(value, type=JournalRecord) for value in await values(broker, JOURNAL)]
    assert [step.version for step in journal] == list(range(1, len(journal) + 1))
    assert sum(step.rows for step in journal) == rows
    version, model = await weights_of(broker)
    found = newest_snapshot(str(snapshots), spec_hash=SPEC.hash)
    assert found is not None
    assert found[1].version == version == len(journal)
    assert model.weights_sha256() == found[1].model().weights_sha256()
    newest = {
        record.partition: record
        for value in await values(broker, CALIBRATION)
        for record in [msgspec.msgpack.decode(value, type=CalibrationRecord)]
    }
    assert sum(record.rows for record in newest.values()) == rows
    states = [HeadCalibration.from_bytes(record.state, SPEC.slice_plan) for record in newest.values()]
    assert sum(state.exposures + state.events for state in states) == rows


async def test_a_click_goes_all_the_way(kafka_topics: TestTopics, redis_url: str, tmp_path: Path) -> None:
    """Served rows, impressions and clicks become examples, session features, deltas, a snapshot and a calibration."""
    base_snapshot(tmp_path / "snapshots")
    async with (
        worker(environment(kafka_topics, redis_url), tmp_path / "snapshots", tmp_path / "log") as running,
        front(kafka_topics.settings(redis_url)) as at,
    ):
        shown = serve(USERS, [START_MS + 1000 * i for i in range(len(USERS))], at.broker.partitions, first_id=1)
        await at.show(shown, clicked=shown.impression_id[::3])
        await joined(at, running, len(USERS) + 4, START_MS + 3 * MINUTE_MS)
        assert await running.stop() == 0, said(running.log)

        examples = await examples_of(at.broker)
        clicks = examples.take(examples.kind == CLICK)
        assert sorted(clicks.impression_id.tolist()) == shown.impression_id[::3]
        assert clicks.delay_ms.tolist() == [1000] * 4
        assert ((examples.click_produced_ms > 0) == (examples.kind == CLICK)).all()
        for record in shown.record.values():
            served = record.arrays()
            of = {key: i for i, key in enumerate(examples.impression_id.tolist())}
            rows = [of[key] for key in served["impression_id"].tolist()]
            assert np.array_equal(examples.ids[rows, : record.request_fields], served["request_ids"])
            assert np.array_equal(examples.logit[rows], served["logit"])
        await check_the_whole(at.broker, tmp_path / "snapshots", len(USERS), 4)
        assert await letters_of(at.broker) == []
        await check_sessions(at.broker, redis_url, examples)


async def users_of(broker: Broker, redis_url: str, user_key: Sequence[int] | NDArray[np.uint64]) -> NDArray[Any]:
    """The states of users that Redis holds, whatever their partition."""
    redis = Redis.from_url(redis_url)
    store = RedisSessionStore(redis, SPEC, broker.partitions)
    none = np.zeros(0, np.uint64)
    keys = SessionKeys(np.unique(np.asarray(user_key, np.uint64)), none, none)
    states = [(await store.load(partition, keys)).users for partition in range(broker.partitions)]
    await redis.aclose()
    return np.concatenate([users[users["seen_ms"] > 0] for users in states])


async def check_sessions(broker: Broker, redis_url: str, examples: ExampleRows) -> None:
    """Redis holds one display, one outcome and the click of every user, behind a fence at the end of the log."""
    redis = Redis.from_url(redis_url)
    store = RedisSessionStore(redis, SPEC, broker.partitions)
    for partition in range(broker.partitions):
        fence = await store.fence(partition)
        async with LogReader(broker) as log:
            offsets = [record.offset async for record in log.read(EXAMPLES, partition)]
        assert fence == (offsets[-1] + 1 if offsets else 0)
    await redis.aclose()
    found = await users_of(broker, redis_url, examples.user_key)
    assert len(found) == len(USERS)
    assert found["session_impressions"].tolist() == [1] * len(USERS)
    assert int(found["session_clicks"].sum()) == int((examples.kind == CLICK).sum())
    assert found["outcome_count"].tolist() == [1] * len(USERS)


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
async def test_a_restarted_worker_goes_on_where_the_last_one_was(
    end: str, kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """Stopped or killed with displays that wait, batches and part files open: nothing is lost, nothing doubled.

    The versions go on, and the last can be made again from the log.
    """
    base_snapshot(tmp_path / "snapshots")
    settings, partitions = kafka_topics.settings(redis_url), kafka_topics.partitions
    first = serve(USERS, [START_MS + 1000 * i for i in range(len(USERS))], partitions, first_id=1)
    pending = serve(USERS, [START_MS + 4 * MINUTE_MS + 1000 * i for i in range(len(USERS))], partitions, first_id=101)
    last = serve(USERS, [START_MS + 8 * MINUTE_MS + 1000 * i for i in range(len(USERS))], partitions, first_id=201)
    async with front(settings) as at:
        archived = environment(kafka_topics, redis_url) | {"MILLSTREAM_ARCHIVE": str(tmp_path / "archive")}
        where = (archived, tmp_path / "snapshots", tmp_path / "log")
        async with worker(*where) as running:
            await at.show(first, clicked=first.impression_id[::3])
            await joined(at, running, len(USERS) + 4, START_MS + 3 * MINUTE_MS)
            await at.show(pending, clicked=pending.impression_id[::2])
            await until(lambda: clicks_joined(at.broker, 10), "the clicks on rows that waited were joined")
            if end == "SIGTERM":
                assert await running.stop() == 0, said(running.log)
        async with worker(*where) as running:
            await at.show(last, clicked=last.impression_id[1::2])
            await joined(at, running, 36 + 16, START_MS + 12 * MINUTE_MS)
            assert await running.stop() == 0, said(running.log)
        await check_the_whole(at.broker, tmp_path / "snapshots", 36, 16)
        rebuilt = await rebuild(at.broker, str(tmp_path / "snapshots"), lambda _: SPEC, start_version=0)
        assert rebuilt.rows == 36 + 16
        assert rebuilt.sha256 == rebuilt.published_sha256 == rebuilt.snapshot_sha256
        examples, found = await examples_of(at.broker), read_examples(tmp_path / "archive")
        assert sorted(found.columns["impression_id"].tolist()) == sorted(examples.impression_id.tolist())
        parts = [read_examples(path) for path in (tmp_path / "archive").rglob("*.parquet")]
        assert sum(map(len, parts)) == 36 + 16, "no row is in two part files"


async def clicks_joined(broker: Broker, clicks: int) -> bool:
    """Whether so many clicks are in the topic."""
    return int(((await examples_of(broker)).kind == CLICK).sum()) >= clicks


async def test_live_a_lone_click_is_learned_without_waiting_for_event_time(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """On the wall clock one click, after which nothing comes, is in a delta long before idle inputs are passed over."""
    base_snapshot(tmp_path / "snapshots")
    where = {**environment(kafka_topics, redis_url), "MILLSTREAM_IDLE_TIMEOUT_S": "3600"}
    del where["MILLSTREAM_LEARN_INTERVAL_S"]
    async with (
        worker(where, tmp_path / "snapshots", tmp_path / "log", clock="wall"),
        front(kafka_topics.settings(redis_url)) as at,
    ):
        shown = serve([1], [time.time_ns() // 1_000_000], at.broker.partitions, first_id=1)
        await at.show(shown, clicked=shown.impression_id)

        async def learned() -> bool:
            version, _ = await weights_of(at.broker)
            return version == 1

        await until(learned, "the click was published")


async def test_bad_input_goes_to_the_dead_letters_and_stops_nothing(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """Malformed, mistyped, unknown, late or foreign: each with its reason and counter; a duplicate changes nothing."""
    base_snapshot(tmp_path / "snapshots")
    async with (
        worker(environment(kafka_topics, redis_url), tmp_path / "snapshots", tmp_path / "log") as running,
        front(kafka_topics.settings(redis_url)) as at,
    ):
        shown = serve(USERS[:2], [START_MS, START_MS], at.broker.partitions, first_id=1)
        clicked, user = shown.impression_id[0], shown.user_key[0]
        click = b'{"impression_id": "%d", "user_key": "%d", "ts_ms": %d}' % (clicked, user, START_MS + 900)
        again = b'{"impression_id": "%d", "user_key": "%d", "ts_ms": %d}' % (clicked, user, START_MS + 200)
        unknown = b'{"impression_id": 999, "user_key": "%d", "ts_ms": %d}' % (user, START_MS + 900)
        await at.show(shown, clicked=[clicked])
        await at.send(CLICKS, click, key=user)
        await at.send(IMPRESSIONS, again, key=user)
        await at.show(shown)  # a second time: served rows and impressions alike
        await at.send(IMPRESSIONS, b"{not json", key=user)
        await at.send(CLICKS, b'{"impression_id": 1, "user_key": 2, "ts_ms": "noon"}', key=user)
        await at.send(CLICKS, unknown, key=user)
        await at.send(CONVERSIONS, b'{"impression_id": 1, "user_key": 2, "ts_ms": 12}', key=user)
        foreign = msgspec.structs.replace(next(iter(shown.record.values())), spec_hash="0" * 16)
        await at.send(SERVED, foreign.encode(), partition=0)
        late = b'{"impression_id": "%d", "user_key": "%d", "ts_ms": %d}' % (*other(shown), START_MS + 90_000)
        await at.send(CLICKS, late, key=other(shown)[1])
        await joined(at, running, 4, START_MS + 5 * MINUTE_MS)
        seen = await running.metrics()
        assert await running.stop() == 0, said(running.log)

        letters = await letters_of(at.broker)
        expected = Counter(
            {
                (IMPRESSIONS, "malformed"): 1,
                (CLICKS, "schema"): 1,
                (CLICKS, "unknown_impression"): 1,
                (CONVERSIONS, "time"): 1,
                (SERVED, "spec"): 1,
            }
        )
        assert Counter((letter.topic, letter.reason) for letter in letters) == expected
        for (topic, reason), count in expected.items():
            assert seen[f'millstream_dead_letters_total{{reason="{reason}",topic="{topic}"}}'] == count
        assert next(one.payload for one in letters if one.reason == "malformed") == b"{not json"
        assert next(one.payload for one in letters if one.reason == "spec") == foreign.encode()
        for topic, count in (("served", 2), ("impressions", 3), ("clicks", 1)):
            assert seen[f'millstream_join_rows_total{{outcome="duplicate_{topic}"}}'] == count
        examples = await examples_of(at.broker)
        states = await users_of(at.broker, redis_url, shown.user_key)
        assert states["session_impressions"].tolist() == states["outcome_count"].tolist() == [1, 1]
        assert states["session_clicks"].tolist() == [1, 1]
        assert Counter(examples.kind.tolist()) == {EXPOSURE: 2, CLICK: 2}
        assert sorted(examples.impression_id[examples.kind == CLICK].tolist()) == shown.impression_id


def other(shown: Shown) -> tuple[int, int]:
    """Impression and user of the second row."""
    return shown.impression_id[1], shown.user_key[1]


async def run(environment: dict[str, str], *arguments: str) -> tuple[int | None, str]:
    """A worker that is expected to end by itself: its status and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stream", "worker", *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode, " ".join(output.decode().replace("│", " ").split())


async def test_a_worker_refuses_a_log_of_labelled_examples(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """Whichever agent meets it first: the worker ends with status 1, and says once what it is and what to do."""
    base_snapshot(tmp_path / "snapshots")
    async with front(kafka_topics.settings(redis_url)) as at:
        old = msgspec.msgpack.decode(example_rows(2, seed=0).to_record(SPEC.hash, START_MS).encode())
        await at.send(EXAMPLES, msgspec.msgpack.encode({**old, "label": b"\0\1"}), partition=1)
    where = kafka_topics.environment(redis_url)
    status, text = await run(where, "--snapshots", str(tmp_path / "snapshots"), "--spec", SPEC.name)
    assert status == 1
    assert text.count("a record of labelled examples") == 1
    assert f"{EXAMPLES}[1] 0 is" in text
    assert "delete the topic" in text
    assert "Traceback" not in text


async def test_a_worker_without_a_usable_snapshot_says_the_remedy(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """An empty folder, a snapshot of another spec, an unknown agent: exit 1 or 2 and a message that helps."""
    where = kafka_topics.environment(redis_url)
    status, text = await run(where, "--snapshots", str(tmp_path / "none"))
    assert status == 1
    assert "holds no snapshot" in text
    assert "python -m learners base" in text
    base = base_snapshot(tmp_path / "snapshots")
    status, text = await run(where, "--snapshots", str(tmp_path / "snapshots"), "--spec", "kuairand")
    assert status == 1
    assert base.shape.spec_hash in text
    found = CliRunner().invoke(app, ["worker", "--snapshots", str(tmp_path), "--agents", "join,lern"])
    assert found.exit_code == 2
    assert "lern" in found.stderr


async def test_a_worker_that_cannot_go_on_ends_with_status_1(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """Session features of another log: the worker names the partition and stops instead of folding rows twice."""
    base_snapshot(tmp_path / "snapshots")
    redis = Redis.from_url(redis_url)
    none = np.zeros(0, np.uint64)
    nothing = SessionStates(SessionKeys(none, none, none), np.zeros(0, USER), np.zeros(0, COUNTER))
    store = RedisSessionStore(redis, SPEC, kafka_topics.partitions)
    await store.apply(1, 0, 9, nothing)
    await redis.aclose()
    status, text = await run(environment(kafka_topics, redis_url), "--snapshots", str(tmp_path / "snapshots"))
    assert status == 1
    assert f"{EXAMPLES}[1] ends before offset 9" in text


async def test_an_archive_of_another_log_is_refused_by_a_worker_with_a_log_of_its_own(tmp_path: Path) -> None:
    """The embedded broker begins at offset 0: what it brings would count as archived."""
    base_snapshot(tmp_path / "snapshots")
    (tmp_path / f"p0-{0:020d}-{70:020d}.parquet").touch()
    unset = {n: v for n, v in os.environ.items() if n not in ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "KAFKA_HOME")}
    status, text = await run(unset, "--snapshots", str(tmp_path / "snapshots"), "--archive", str(tmp_path))
    assert status == 1
    assert "holds offsets up to 70 of another log" in text


async def test_a_stop_during_the_start_ends_it(kafka_topics: TestTopics, redis_url: str, tmp_path: Path) -> None:
    """A deployment that rolls a release out again does not wait for what is not wanted any more."""
    base_snapshot(tmp_path / "snapshots")
    where = (environment(kafka_topics, redis_url), tmp_path / "snapshots", tmp_path / "log")
    async with starting_worker(*where) as starting:
        await until(starting.health, "the worker answers")
        assert await starting.stop() == 0, said(starting.log)
        assert "worker ready" not in said(starting.log)


async def test_a_stop_ends_a_start_that_waits_for_another_member_of_its_group(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """A member that is paused holds a rebalance up until its session ends: a stop need not wait for it."""
    broker = await find_broker(kafka_topics.settings(redis_url))
    if not broker.idempotent:
        pytest.skip("without transactions there is one worker")
    base_snapshot(tmp_path / "snapshots")
    where = {**environment(kafka_topics, redis_url), "KAFKA_SESSION_TIMEOUT_S": "40"}
    async with (
        admin(broker) as client,
        worker(where, tmp_path / "snapshots", tmp_path / "first") as first,
    ):

        async def rebalances() -> bool:
            return "PreparingRebalance" in str(await client.describe_consumer_groups([broker.group("join")]))

        first.process.send_signal(signal.SIGSTOP)
        async with starting_worker(where, tmp_path / "snapshots", tmp_path / "second") as second:
            await until(rebalances, "the group waits for the first worker")
            assert await second.stop() == 0, said(second.log)


@asynccontextmanager
async def admin(broker: Broker) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client that looks at groups; closed at the end."""
    client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def test_stops_although_the_broker_is_gone(redis_url: str, tmp_path: Path) -> None:
    """A stop that can neither flush nor commit is cut off, with status 1."""
    base_snapshot(tmp_path / "snapshots")
    async with EmbeddedBroker() as broker:
        where = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap, "REDIS_URL": redis_url}
        async with worker(where, tmp_path / "snapshots", tmp_path / "log") as running:
            await broker.stop()
            assert await running.stop() == 1
            assert "was cut off" in said(running.log)


async def test_starts_its_own_servers_when_none_are_given(tmp_path: Path) -> None:
    """With both addresses unset a broker and a Redis are embedded; a stop leaves nothing behind."""
    base_snapshot(tmp_path / "snapshots")
    unset = {n: v for n, v in os.environ.items() if n not in ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "KAFKA_HOME")}
    async with worker(unset, tmp_path / "snapshots", tmp_path / "log") as running:
        text = said(running.log)
        assert "KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:" in text
        assert re.search(r"REDIS_URL=unix:///\S+/redis\.sock", text)
        assert await running.stop() == 0, said(running.log)
