"""The day's new base by the programs: worker with an archive, base training, worker again, rebuild."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from learners.snapshots.snapshot import load_snapshot, versions
from stream.records.topics import JOURNAL
from stream.records.wire import JournalRecord
from tests.brokers import TestTopics
from tests.stream.pipeline import START_MS, Front, Worker, base_snapshot, front, said, serve, until, values, worker

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
ROWS, CLICKS = 60, 20
MINUTE_MS = 60_000


async def program(environment: Mapping[str, str], *arguments: str) -> str:
    """`python -m …`: its stdout; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments,
        env={**environment, "OMP_NUM_THREADS": "1"}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode()


async def shown(at: Front, running: Worker, round_: int) -> None:
    """Show ads to users, a third of which are clicked, until all of it is learned."""
    start = START_MS + 5 * MINUTE_MS * round_
    batch = serve([1 + i % 12 for i in range(ROWS)], [start + 500 * i for i in range(ROWS)], at.broker.partitions,
                  first_id=1 + ROWS * round_)  # fmt: skip
    await at.show(batch, clicked=batch.impression_id[::3])
    await at.pass_time(start + 4 * MINUTE_MS)

    async def learned() -> bool:
        seen = await running.metrics()
        return seen["millstream_learn_watermark_timestamp_seconds"] * 1000 >= start + 4 * MINUTE_MS

    await until(learned, f"round {round_} is learned")


async def test_a_base_trained_beside_a_stream_is_its_next_version(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """The archive's rows are in the base, the others in the steps after it; the last version is rebuilt from it."""
    root, archive = tmp_path / "snapshots", tmp_path / "archive"
    base_snapshot(root)
    environment = {
        **kafka_topics.environment(redis_url),
        "MILLSTREAM_CLICK_WINDOW_S": "60",
        "MILLSTREAM_LEARN_INTERVAL_S": "10",
        "MILLSTREAM_LEARN_BATCH_ROWS": "8",
        "MILLSTREAM_ARCHIVE": str(archive),
    }
    async with front(kafka_topics.settings(redis_url)) as at:
        async with worker(environment, root, tmp_path / "log") as running:
            await shown(at, running, 0)
            assert await running.stop() == 0, said(running.log)
        train = ["learners", "base", "--examples", str(archive), "--out", str(root), "--json", "--click-window-s", "5"]
        trained = json.loads(await program(environment, *train))
        assert (trained["rows"], trained["waits"]) == (ROWS - 10, True), "those of the last 5 s are not mature"
        async with worker(environment, root, tmp_path / "log") as running:
            await shown(at, running, 1)
            assert (await running.metrics())["millstream_learn_bases_total"] == 1
            assert await running.stop() == 0, said(running.log)
        journal = [msgspec.msgpack.decode(value, type=JournalRecord) for value in await values(at.broker, JOURNAL)]
        stored = [load_snapshot(f"{root}/v{version:012d}") for version in versions(str(root)) if version]
        (base,) = (one for one in stored if one.created_from == "base")
        assert [one.version for one in journal] == [
            version for version in range(1, journal[-1].version + 1) if version != base.version
        ]
        assert sum(one.rows for one in journal if one.version < base.version) == ROWS + CLICKS
        assert sum(one.rows for one in journal if one.version > base.version) == ROWS + CLICKS
        assert set(base.offsets) <= set(range(at.broker.partitions))
        report = json.loads(await program(environment, "stream", "rebuild", "--snapshots", str(root), "--json"))
        assert (report["version"], report["start_version"], report["equal"]) == (
            journal[-1].version,
            base.version,
            True,
        )
        assert report["sha256"] == report["published_sha256"] == report["snapshot_sha256"]
