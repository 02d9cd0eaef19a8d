"""A worker meets records on the stream's own topics, and keys in Redis, that no program of the stream wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from redis.asyncio import Redis

from learners.examples.kinds import CLICK, EXPOSURE
from stream.kafka.broker import Broker
from stream.kafka.log_reader import LogReader, sound
from stream.learn.published import follow, last_published
from stream.records.internal import decode_journal
from stream.records.topics import CALIBRATION, CLICKS, DEADLETTER, EXAMPLES, JOURNAL, SERVED, WEIGHTS
from stream.records.wire import CalibrationRecord, DeadLetter, DeltaPart, JournalRecord, OffsetRange
from stream.servers.fences import fence_of
from stream.sessions.store import KeyNames
from tests.brokers import TestTopics
from tests.stream.pipeline import (
    SPEC,
    START_MS,
    Front,
    Worker,
    base_snapshot,
    example_rows,
    front,
    said,
    serve,
    until,
    values,
    worker,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
_SECOND_MS = 1_000
USERS = [*range(1, 9)]


def poison() -> list[tuple[str, bytes | None]]:
    """One record of each kind that ended a worker, and its relatives."""
    encode: Callable[..., bytes] = msgspec.msgpack.encode
    state = CalibrationRecord(
        partition=0, version=1, rows=1, watermark_ms=START_MS, state=b"MSCH" + b"\0" * 40, next_offset=10**9
    )
    step = JournalRecord(
        version=2**60, rows=1, watermark_ms=0,
        ranges=[OffsetRange(partition=0, from_offset=0, from_row=0, to_offset=1, to_row=0)],
    )  # fmt: skip
    delta = DeltaPart(
        spec_hash=SPEC.hash, version=2**63, parent=2**63, part=0, parts=1, checksum=0, watermark_ms=START_MS,
        newest_event_ms=0, clicks_produced_ms=b"", payload=b"",
    )  # fmt: skip
    rows = example_rows(3, seed=7, kind=np.array([EXPOSURE, CLICK, EXPOSURE], np.uint8))
    bad = rows.with_event(CLICK, known_ms=np.full(3, 2**62), model_version=np.array([0, -1, 2**62]))
    labelled = {**msgspec.msgpack.decode(rows.to_record(SPEC.hash, START_MS).encode()), "label": b"\0\0\0"}
    (served,) = serve([1], [START_MS], 1, 900).record.values()
    own: list[tuple[str, bytes | None]] = [
        (topic, value)
        for topic in (WEIGHTS, CALIBRATION, JOURNAL, EXAMPLES)
        for value in (b"\xc1garbage", b"{}", b"\x91" * 900, encode({"record": "delta", "version": "\x80"}))
    ]
    return [
        *own,
        (WEIGHTS, None), (JOURNAL, None), (EXAMPLES, None),
        (WEIGHTS, encode(delta)),
        (CALIBRATION, encode(state)),
        (CALIBRATION, encode(msgspec.structs.replace(state, partition=999))),
        (JOURNAL, encode(step)),
        (JOURNAL, encode(msgspec.structs.replace(step, version=1, ranges=step.ranges * 2, watermark_ms=2**62))),
        (EXAMPLES, bad.to_record(SPEC.hash, START_MS).encode()),
        (EXAMPLES, rows.to_record(SPEC.hash, 2**62).encode()),
        (EXAMPLES, encode(labelled)),
        (SERVED, msgspec.structs.replace(served, model_version=2**63).encode()),
    ]  # fmt: skip


async def put_in(at: Front, redis: Redis) -> None:
    """The records into partition 0 of their topics, and fences that are none."""
    for topic, value in poison():
        await at.producer.send_and_wait(at.broker.topic(topic), value, key=b"0", partition=0)
    for partition in range(at.broker.partitions):
        await redis.set(KeyNames(SPEC, partition).fence, b"abc")
        await redis.set(f"millstream:{SPEC.hash}:{{{partition}}}:click", b"-7")


async def shown(at: Front, running: Worker, first_id: int, from_ms: int) -> None:
    """Displays, every second one clicked; return when they are learned, folded and calibrated."""
    row = serve(USERS, [from_ms + i * _SECOND_MS for i in range(len(USERS))], at.broker.partitions, first_id)
    await at.show(row, clicked=row.impression_id[::2])
    await at.pass_time(from_ms + 180 * _SECOND_MS)

    async def caught_up() -> bool:
        seen = await running.metrics()
        names = ("session", "learn", "calibration")
        times = [seen[f"millstream_{name}_watermark_timestamp_seconds"] for name in names]
        return min(times) * 1000 >= from_ms + 180 * _SECOND_MS

    await until(caught_up, "the examples were learned, folded and calibrated")


async def sound_steps(broker: Broker) -> list[JournalRecord]:
    """What of the journal can be right."""
    async with LogReader(broker) as log:
        return [step async for step in sound(log, JOURNAL, decode_journal)]


async def test_a_worker_puts_them_aside_and_a_second_life_does_so_alike(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """Two lives, poisoned before each: every true row is learned once, and the weights are those of the journal."""
    base = base_snapshot(tmp_path / "snapshots")
    environment = {
        **kafka_topics.environment(redis_url), "MILLSTREAM_CLICK_WINDOW_S": "60", "MILLSTREAM_DISPLAY_HORIZON_S": "60",
        "MILLSTREAM_LEARN_INTERVAL_S": "10", "MILLSTREAM_LEARN_BATCH_ROWS": "4",
    }  # fmt: skip
    redis: Redis = Redis.from_url(redis_url)
    async with front(kafka_topics.settings(redis_url)) as at:
        for life in range(2):
            await put_in(at, redis)
            log = tmp_path / f"log{life}"
            async with worker(environment, tmp_path / "snapshots", log) as running:
                await shown(at, running, 1 + 100 * life, START_MS + life * 300 * _SECOND_MS)
                rejected = await running.metrics()
                assert await running.stop() == 0, said(log)
            assert "Traceback" not in said(log)
            for topic in (WEIGHTS, CALIBRATION, JOURNAL):
                found = [v for k, v in rejected.items() if "rejected_records_total{" in k and topic in k]
                assert sum(found) >= 3, rejected
        steps = await sound_steps(at.broker)
        assert [step.version for step in steps] == [*range(1, len(steps) + 1)]
        assert sum(step.rows for step in steps) == 2 * (len(USERS) + len(USERS) // 2)
        model = base.model()
        async with LogReader(at.broker) as log_reader:
            version = await last_published(log_reader)
            await follow(log_reader, model, version=0, last_version=version)
        assert version == len(steps)
        letters = [msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(at.broker, DEADLETTER)]
        reasons = {(one.topic, one.reason) for one in letters}
        assert {(EXAMPLES, "malformed"), (EXAMPLES, "schema"), (EXAMPLES, "time"), (SERVED, "schema")} <= reasons
        assert not any(one.topic == CLICKS for one in letters)
        for partition in range(at.broker.partitions):
            assert fence_of(await redis.get(KeyNames(SPEC, partition).fence)) > 0
    await redis.aclose()
