"""Clients whose clock, user or partition is wrong, against a live worker: put aside, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiokafka.errors import InvalidTimestampError  # type: ignore[import-untyped]

from learners.examples.kinds import CLICK, EXPOSURE
from stream.records.partition import key_bytes, partition_of
from stream.records.topics import CLICKS, DEADLETTER, IMPRESSIONS, SERVED
from stream.records.wire import DeadLetter
from tests.brokers import TestTopics
from tests.stream.pipeline import Front, Shown, Worker, base_snapshot, front, serve, until, values, worker
from tests.stream.worker.test_process import examples_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
AHEAD_MS = 55 * 60_000  # within MILLSTREAM_MAX_AHEAD_S
FAR_MS = 3_950_000_000_000  # 2095


def now_ms() -> int:
    """The time of day."""
    return time.time_ns() // 1_000_000


class Marketplace:
    """One user, what was shown to him and what was rejected of it."""

    def __init__(self, at: Front) -> None:
        self.at = at
        self.shown: list[Shown] = []
        self.first_id = 1

    def serve(self, rows: int) -> Shown:
        """Serve rows to the user some seconds ago; the records are not sent yet."""
        shown = serve([1] * rows, [now_ms() - 3_000] * rows, self.at.broker.partitions, first_id=self.first_id)
        self.first_id += rows
        return shown

    async def show(self, rows: int) -> None:
        """Serve, display and click rows; all of it must be joined, although serving is not heard of afterwards."""
        shown = self.serve(rows)
        self.shown.append(shown)
        await self.at.show(shown, clicked=shown.impression_id)
        wanted = {(kind, key) for one in self.shown for key in one.impression_id for kind in (EXPOSURE, CLICK)}

        async def joined() -> bool:
            examples = await examples_of(self.at.broker)
            return set(zip(examples.kind.tolist(), examples.impression_id.tolist(), strict=True)) == wanted

        await until(joined, f"all of {len(wanted)} examples were there, and no others")

    async def rejected(self, expected: dict[tuple[str, str], int]) -> dict[str, str]:
        """Wait until there are so many dead letters by topic and reason; the details by reason."""

        async def all_there() -> list[DeadLetter] | None:
            letters = [
                msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(self.at.broker, DEADLETTER)
            ]
            return letters if len(letters) >= sum(expected.values()) else None

        letters = await until(all_there, f"{expected} were dead letters")
        assert Counter((letter.topic, letter.reason) for letter in letters) == expected
        return {letter.reason: letter.detail for letter in letters}

    async def send(self, topic: str, key: int, user: int, ts_ms: int, *, by: int, record_ms: int | None = None) -> None:
        """An event of a user to the partition that belongs to ``by``."""
        event = b'{"impression_id": "%d", "user_key": %d, "ts_ms": %d}' % (key, user, ts_ms)
        where = int(partition_of(np.array([by], np.uint64), self.at.broker.partitions)[0])
        sent = self.at.producer.send_and_wait
        await sent(self.at.broker.topic(topic), event, key=key_bytes(by), partition=where, timestamp_ms=record_ms)


async def on_time(running: Worker) -> bool:
    """Whether no watermark is ahead of the clock."""
    seen = await running.metrics()
    names = ("join_furthest", "join", "learn")
    return all(seen[f"millstream_{name}_watermark_timestamp_seconds"] <= time.time() for name in names)


async def test_one_client_neither_moves_time_nor_touches_what_others_were_served(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """A clock an hour fast, a year wrong in event and record, another's user, another partition; then a restart."""
    base_snapshot(tmp_path / "snapshots")
    environment = {
        **kafka_topics.environment(redis_url),
        "MILLSTREAM_IDLE_TIMEOUT_S": "1",
        "MILLSTREAM_DISPLAY_HORIZON_S": "60",
        "MILLSTREAM_LEARN_BATCH_ROWS": "8",
    }
    arguments = environment, tmp_path / "snapshots", tmp_path / "log", "wall"
    async with front(kafka_topics.settings(redis_url)) as at:
        world = Marketplace(at)
        async with worker(*arguments) as running:
            await world.show(10)
            user = world.shown[0].user_key[0]

            unseen = world.serve(1)  # its only display is dated an hour ahead
            for partition, record in unseen.record.items():
                await at.send(SERVED, record.encode(), partition)
            await world.send(IMPRESSIONS, unseen.impression_id[0], user, now_ms() + AHEAD_MS, by=user)
            expected = {(IMPRESSIONS, "late"): 1}
            await world.rejected(expected)
            await world.show(10)

            at_ms = now_ms() + AHEAD_MS
            await world.send(CLICKS, 4_711, user, at_ms, by=user, record_ms=at_ms)  # of an impression that may come
            await at.send(IMPRESSIONS, b'{"watermark_ms": %d}' % at_ms, key=user)
            with contextlib.suppress(InvalidTimestampError):  # Apache Kafka refuses it by itself
                await world.send(CLICKS, 4_712, user, FAR_MS, by=user, record_ms=FAR_MS)
                expected[CLICKS, "time"] = 1
            await world.rejected(expected)
            await world.show(10)
            assert await on_time(running)

            key = world.shown[-1].impression_id[0]
            await world.send(IMPRESSIONS, key, int(float(user)), now_ms(), by=user)  # as JavaScript rounds it
            await world.send(CLICKS, key, user, now_ms(), by=_elsewhere(user, at.broker.partitions))
            expected |= {(IMPRESSIONS, "wrong_user"): 1, (CLICKS, "wrong_partition"): 1}
            details = await world.rejected(expected)
            assert "is not the user that this impression was served to" in details["wrong_user"]
            assert "murmur2" in details["wrong_partition"]
            running.process.kill()
            await running.process.wait()
        async with worker(*arguments) as running:
            await world.show(10)  # what was rejected may be again, as it may be read again
            assert await on_time(running)


def _elsewhere(user: int, partitions: int) -> int:
    """A user of another partition."""
    users = np.arange(1, 100, dtype=np.uint64)
    home = partition_of(np.array([user], np.uint64), partitions)[0]
    return int(users[partition_of(users, partitions) != home][0])
