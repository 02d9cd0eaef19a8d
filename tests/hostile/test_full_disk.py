"""A disk runs full under a running worker: nothing is lost, it says so, and goes on by itself when room is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from redis.asyncio import Redis

from learners.examples.archive import read_examples
from learners.features.session_state import COUNTER, USER
from learners.snapshots.snapshot import newest_snapshot, versions
from stream.embedded.process import free_port
from stream.kafka.broker import Broker
from stream.records.examples import ExampleRows
from stream.records.examples_codec import decode_examples
from stream.records.topics import EXAMPLES
from stream.sessions.fold import SessionFold, SessionStates
from stream.sessions.store import RedisSessionStore
from tests.brokers import TestTopics
from tests.chaos.lasting_redis import LastingRedis
from tests.hostile.small_disk import SmallDisk, small_disk
from tests.stream.pipeline import (
    SPEC,
    START_MS,
    Front,
    Worker,
    base_snapshot,
    front,
    said,
    serve,
    until,
    values,
    worker,
)
from tests.stream.worker.test_process import MINUTE_MS, USERS, environment, examples_of, joined

pytestmark = [pytest.mark.one_broker, pytest.mark.e2e, pytest.mark.timeout(120)]
_ROWS = len(USERS) + 4  # and every third one clicked


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    """Four megabytes."""
    with small_disk(4 << 20) as mounted:
        yield mounted


async def degraded(running: Worker) -> dict[str, str]:
    """What `/readyz` says does not work, while it answers 200."""
    async with aiohttp.ClientSession() as http, http.get(f"{running.metrics_url}/readyz") as answer:
        assert answer.status == 200
        return dict((await answer.json()).get("degraded", {}))


async def show(at: Front, first_id: int, from_ms: int) -> None:
    """Displays to all users, a second apart."""
    times = [from_ms + 1000 * at for at in range(len(USERS))]
    shown = serve(USERS, times, at.broker.partitions, first_id)
    await at.show(shown, clicked=shown.impression_id[::3])


async def test_a_full_disk_under_snapshots_archive_and_embedded_redis(
    kafka_topics: TestTopics, tmp_path: Path, disk: SmallDisk
) -> None:
    """All is joined, folded and learned meanwhile; then the archive holds every example and a snapshot is written."""
    snapshots, archive = disk.folder / "snapshots", disk.folder / "archive"
    base_snapshot(snapshots)
    (disk.folder / "tmp").mkdir()
    where = environment(kafka_topics, "") | {
        "MILLSTREAM_ARCHIVE": str(archive),
        "MILLSTREAM_SNAPSHOT_INTERVAL_S": "60",
        "TMPDIR": str(disk.folder / "tmp"),
    }
    del where["REDIS_URL"]
    log = tmp_path / "log"
    async with worker(where, snapshots, log) as running, front(kafka_topics.settings()) as at:
        disk.fill()
        await show(at, 1, START_MS)
        await joined(at, running, _ROWS, START_MS + 3 * MINUTE_MS)
        await at.pass_time(START_MS + 40 * MINUTE_MS)

        async def both_fail() -> bool:
            return set(await degraded(running)) == {"snapshots", "archive"}

        await until(both_fail, "both folders are said to fail")
        assert all("No space left" in reason for reason in (await degraded(running)).values())
        seen = await running.metrics()
        assert all(seen[f'millstream_store_failing{{store="{store}"}}'] == 1 for store in ("snapshots", "archive"))
        assert seen["millstream_learned_rows_total"] == seen["millstream_session_rows_total"] == _ROWS
        assert seen["millstream_session_store_failures_total"] == 0
        disk.make_room()

        async def both_work() -> bool:
            seen = await running.metrics()
            taken = seen["millstream_archived_rows_total"] + seen["millstream_archive_waiting_rows"]
            return taken == _ROWS and not await degraded(running)

        await until(both_work, "both folders are written again")
        assert await running.stop() == 0, said(log)
        assert len(await examples_of(at.broker)) == len(read_examples(archive)) == _ROWS
    found = newest_snapshot(str(snapshots), spec_hash=SPEC.hash)
    assert found is not None
    assert found[1].version == versions(str(snapshots))[0] > 0
    assert not [path for path in disk.folder.rglob("*") if "unfinished" in path.name]
    assert "Traceback" not in said(log)


async def test_a_full_disk_under_the_append_only_file_of_redis(
    kafka_topics: TestTopics, tmp_path: Path, disk: SmallDisk
) -> None:
    """Redis refuses writes: joining and learning go on, it is said, and the session state is that of the log after."""
    base_snapshot(tmp_path / "snapshots")
    async with LastingRedis(free_port(), disk.folder / "redis") as redis_server:
        where = environment(kafka_topics, redis_server.url)
        log = tmp_path / "log"
        async with worker(where, tmp_path / "snapshots", log) as running, front(kafka_topics.settings()) as at:
            await show(at, 1, START_MS)
            await joined(at, running, _ROWS, START_MS + 3 * MINUTE_MS)
            disk.fill()
            await show(at, 101, START_MS + 4 * MINUTE_MS)
            await at.pass_time(START_MS + 7 * MINUTE_MS)

            async def refused() -> bool:
                seen = await running.metrics()
                return (
                    seen["millstream_learned_rows_total"] == 2 * _ROWS
                    and seen["millstream_session_store_failures_total"] > 0
                )

            await until(refused, "all was learned, and the session store is said to fail")
            assert await running.health() == 200
            assert "session_store" in await degraded(running)
            assert "No space left" in said(log)
            disk.make_room()

            async def folded() -> bool:
                seen = await running.metrics()
                return seen["millstream_session_watermark_timestamp_seconds"] * 1000 >= START_MS + 7 * MINUTE_MS

            await until(folded, "the examples were folded once Redis could write")
            assert "session_store" not in await degraded(running)
            await check_sessions(at.broker, redis_server.url)
            assert await running.stop() == 0, said(log)
        assert "Traceback" not in said(log)


async def check_sessions(broker: Broker, redis_url: str) -> None:
    """The states in Redis are those that one fold of the log gives."""
    fold = SessionFold(SPEC)
    async with Redis.from_url(redis_url) as redis:
        store = RedisSessionStore(redis, SPEC, broker.partitions)
        for partition in range(broker.partitions):
            records = await examples_in(broker, partition)
            keys = fold.keys(records)
            empty = SessionStates(keys, np.zeros(len(keys.users), USER), np.zeros(len(keys.counters), COUNTER))
            expected, found = fold.fold(empty, records), await store.load(partition, keys)
            np.testing.assert_array_equal(found.users, expected.users)
            np.testing.assert_array_equal(found.counters, expected.counters)


async def examples_in(broker: Broker, partition: int) -> Sequence[ExampleRows]:
    """The records of a partition of the examples."""
    everything = await values(broker, EXAMPLES, partition + 1)
    before = len(await values(broker, EXAMPLES, partition))
    return [decode_examples(value, SPEC)[0] for value in everything[before:]]
