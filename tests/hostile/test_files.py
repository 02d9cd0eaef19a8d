"""Folders that fail under a running worker, and files that are not what they are called."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from learners.examples.archive import read_examples
from learners.snapshots.snapshot import newest_snapshot, versions
from tests.brokers import TestTopics
from tests.stream.pipeline import SPEC, START_MS, Worker, base_snapshot, front, said, serve, until, worker
from tests.stream.worker.test_process import MINUTE_MS, USERS, environment, examples_of, joined

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


async def degraded(running: Worker) -> dict[str, str]:
    """What `/healthz` says does not work, while it answers 200."""
    async with aiohttp.ClientSession() as http, http.get(f"{running.metrics_url}/healthz") as answer:
        assert answer.status == 200
        return dict((await answer.json()).get("degraded", {}))


async def test_a_worker_whose_folders_fail_goes_on_and_writes_when_they_are_back(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """Snapshots and archive cannot be written: all is joined and learned, metrics and health say so; then both are.

    No folder of Faust's is there that a kill would leave behind.
    """
    snapshots, archive = tmp_path / "snapshots", tmp_path / "archive"
    base_snapshot(snapshots)
    where = environment(kafka_topics, redis_url) | {
        "MILLSTREAM_ARCHIVE": str(archive),
        "MILLSTREAM_SNAPSHOT_INTERVAL_S": "60",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    async with worker(where, snapshots, tmp_path / "log") as running, front(kafka_topics.settings(redis_url)) as at:
        for folder in (snapshots, archive):
            if folder.exists():
                folder.rename(folder.with_suffix(".away"))
            folder.write_bytes(b"")  # not even root can write into a file as if it were a folder
        shown = serve(USERS, [START_MS + 1000 * i for i in range(len(USERS))], at.broker.partitions, first_id=1)
        await at.show(shown, clicked=shown.impression_id[::3])
        await joined(at, running, len(USERS) + 4, START_MS + 3 * MINUTE_MS)
        await at.pass_time(START_MS + 40 * MINUTE_MS)

        async def both_fail() -> bool:
            return set(await degraded(running)) == {"snapshots", "archive"}

        await until(both_fail, "both folders are said to fail")
        assert not list((tmp_path / "tmp").glob("*faust*"))
        seen = await running.metrics()
        assert all(seen[f'millstream_store_failing{{store="{store}"}}'] == 1 for store in ("snapshots", "archive"))
        assert seen["millstream_learned_rows_total"] == len(USERS) + 4
        for folder in (snapshots, archive):
            folder.unlink()
            if folder.with_suffix(".away").exists():
                folder.with_suffix(".away").rename(folder)

        async def both_work() -> bool:
            seen = await running.metrics()
            taken = seen["millstream_archived_rows_total"] + seen["millstream_archive_waiting_rows"]
            return taken == len(USERS) + 4 and not await degraded(running)

        await until(both_work, "both folders are written again, and what was held back is read")
        assert await running.stop() == 0, said(running.log)
        assert len(await examples_of(at.broker)) == len(read_examples(archive)) == len(USERS) + 4
    found = newest_snapshot(str(snapshots), spec_hash=SPEC.hash)
    assert found is not None
    assert found[1].version == versions(str(snapshots))[0] > 0
    assert "Traceback" not in said(tmp_path / "log")
