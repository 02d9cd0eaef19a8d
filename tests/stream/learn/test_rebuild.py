"""A version made again from a snapshot and the journal: equal, different, or not possible for a reason that is said."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from learners.snapshots.snapshot import versions
from stream.__main__ import app
from stream.kafka.admin import delete_topics, ensure_topics
from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.learn.rebuild import RebuildError, Rebuilt, rebuild
from stream.learn.relearn import RelearnError, _rows_of, relearn
from stream.records.deltas import to_parts
from stream.records.topics import EXAMPLES, JOURNAL, WEIGHTS, topic_table
from stream.records.wire import DeltaPart, JournalRecord, OffsetRange, SnapshotNotice
from stream.servers.settings import StreamSettings
from tests.brokers import TestTopics
from tests.stream.learner_harness import LearnerHarness
from tests.stream.pipeline import SPEC, example_rows, values


async def lived(topics: TestTopics, root: Path) -> tuple[LearnerHarness, list[int]]:
    """A harness whose learner lived, was killed and lived again; and the versions that were published."""
    harness = await LearnerHarness.make(topics.settings(), root)
    _, committed = await harness.learn(lambda topic, record, when: topic == JOURNAL and record.version >= 20)
    await harness.learn(committed=committed)
    decoder = msgspec.msgpack.Decoder(DeltaPart | SnapshotNotice)
    parts = [decoder.decode(value) for value in await values(harness.broker, WEIGHTS)]
    return harness, sorted({one.version for one in parts if isinstance(one, DeltaPart) and one.version != one.parent})


async def made_again(harness: LearnerHarness, **options: Any) -> Rebuilt:
    """What rebuild says."""
    return await rebuild(harness.broker, str(harness.root), lambda _: SPEC, **options)


async def test_the_newest_version_is_made_again_in_two_ways(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """From the snapshot before it and the journal; equal to the deltas' and to the manifest's of its own snapshot."""
    harness, published = await lived(kafka_topics, tmp_path)
    seen: list[tuple[int, int]] = []
    rebuilt = await made_again(harness, progress=lambda done, total: seen.append((done, total)))
    assert rebuilt.version == published[-1] == versions(str(tmp_path))[0]
    assert rebuilt.start_version == versions(str(tmp_path))[1]
    assert rebuilt.batches == rebuilt.version - rebuilt.start_version == len(seen)
    assert seen[-1] == (rebuilt.batches, rebuilt.batches)
    assert rebuilt.rows == sum(one.rows for one in await harness.journal() if one.version > rebuilt.start_version)
    assert rebuilt.sha256 == rebuilt.published_sha256 == rebuilt.snapshot_sha256
    assert rebuilt.sha256 == (await harness.never_killed()).model.weights_sha256()
    assert rebuilt.equal
    assert rebuilt.deltas > 0
    assert rebuilt.notes == []


async def test_any_published_version_can_be_made_again_from_any_snapshot_before_it(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Versions between snapshots have their deltas alone to be compared with."""
    harness, published = await lived(kafka_topics, tmp_path)
    stored = versions(str(tmp_path))
    between = next(version for version in reversed(published) if version not in stored)
    for start in [version for version in stored if version <= between]:
        rebuilt = await made_again(harness, version=between, start_version=start)
        assert (rebuilt.start_version, rebuilt.snapshot_sha256, rebuilt.equal) == (start, None, True)
        assert rebuilt.published_sha256 == rebuilt.sha256
        assert rebuilt.notes == ["it has no snapshot of its own"]
    with pytest.raises(RebuildError, match=f"no snapshot 7 from which version {between}"):
        await made_again(harness, version=between, start_version=7)


async def test_a_version_that_was_never_published_has_nothing_to_be_compared_with(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Its hash is told, and why it proves nothing; a version that was never learned is refused, too."""
    harness, published = await lived(kafka_topics, tmp_path)
    hidden = next(one.version for one in await harness.journal() if one.version not in published)
    with pytest.raises(RebuildError, match=rf"(?s)version {hidden} was made again \([0-9a-f]{{64}}\).*never published"):
        await made_again(harness, version=hidden)
    last = published[-1]
    with pytest.raises(RelearnError, match=rf"leads from version {last} to {last}, not to {last + 5}"):
        await made_again(harness, version=last + 5)
    with pytest.raises(RebuildError, match="no whole snapshot"):
        await rebuild(harness.broker, str(tmp_path / "none"), lambda _: SPEC, version=3)


async def test_a_snapshot_of_other_weights_is_found_out(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Its manifest is whole and fits its file, but the log leads elsewhere."""
    harness, published = await lived(kafka_topics, tmp_path)
    manifest = tmp_path / f"v{published[-1]:012d}" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(re.sub(r'"weights_sha256": "[0-9a-f]{8}', '"weights_sha256": "00000000', text))
    rebuilt = await made_again(harness)
    assert rebuilt.published_sha256 == rebuilt.sha256 != rebuilt.snapshot_sha256
    assert not rebuilt.equal


async def test_weights_that_the_log_does_not_lead_to_are_found_out(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Somebody published a version with weights of his own."""
    harness, published = await lived(kafka_topics, tmp_path)
    loop, last = await harness.never_killed(), published[-1]
    loop.resume_after(last)
    loop.step(example_rows(16, seed=99), 0, 10**6, 0)
    altered = {name: array + 1 for name, array in loop.model.dense.arrays().items()}
    loop.model.dense.load(altered)
    delta = loop.model.changes(version=last + 1, parent=last, watermark_ms=1, newest_event_ms=1)
    async with shared_writer(harness.broker) as writer:
        value = example_rows(16, seed=99).to_record(SPEC.hash, 0).encode()
        (offset,) = await writer.write([Outgoing(EXAMPLES, value, partition=0)])
        learned = OffsetRange(partition=0, from_offset=offset, from_row=0, to_offset=offset + 1, to_row=0)
        step = JournalRecord(version=last + 1, rows=16, ranges=[learned], watermark_ms=loop.watermark_ms)
        parts = [Outgoing(WEIGHTS, msgspec.msgpack.encode(part)) for part in to_parts(delta, 1 << 20)]
        await writer.write([Outgoing(JOURNAL, msgspec.msgpack.encode(step)), *parts])
    rebuilt = await made_again(harness)
    assert rebuilt.version == last + 1
    assert rebuilt.published_sha256 not in (None, rebuilt.sha256)
    assert not rebuilt.equal


async def test_a_journal_that_begins_too_late_is_named(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Retention took its head: the message says from which version on a snapshot is needed."""
    harness, _ = await lived(kafka_topics, tmp_path)
    prefix = f"{kafka_topics.prefix}cut."
    table = topic_table(kafka_topics.partitions, prefix=prefix)
    settings = kafka_topics.settings().model_copy(update={"topic_prefix": prefix})
    await ensure_topics(kafka_topics.broker.bootstrap, table)
    try:
        await copy(harness, settings, journal_from=9)
        harness.broker = await find_broker(settings)
        with pytest.raises(RelearnError, match=r"(?s)begins with version 9, needed are 1 on.*version 8 or later"):
            await made_again(harness, version=12, start_version=0)
    finally:
        await delete_topics(kafka_topics.broker.bootstrap, table)


async def copy(harness: LearnerHarness, settings: StreamSettings, journal_from: int) -> None:
    """The topics under another prefix, with the journal's head missing."""
    journal = [one for one in await harness.journal() if one.version >= journal_from]
    async with shared_writer(await find_broker(settings)) as writer:
        for record in harness.records:
            await writer.write([Outgoing(EXAMPLES, record.value or b"", partition=record.partition)])
        for one in journal:
            await writer.write([Outgoing(JOURNAL, msgspec.msgpack.encode(one))])


class _Trimmed:
    """A log that has deleted what came before an offset."""

    def __init__(self, log: LogReader, oldest: int) -> None:
        self._log, self._oldest = log, oldest

    async def oldest(self, topic: str, partition: int) -> int:
        return self._oldest if topic == EXAMPLES else 0

    async def read(self, topic: str, partition: int, start: int = 0, *, stop: int | None = None) -> Any:
        first = max(start, self._oldest) if topic == EXAMPLES else start
        async for record in self._log.read(topic, partition, first, stop=stop):
            yield record


async def test_examples_that_are_gone_are_named(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Partition and offsets, and what to do."""
    harness, _ = await lived(kafka_topics, tmp_path)
    loop = harness.fresh_loop()
    async with LogReader(harness.broker) as log:
        with pytest.raises(
            RelearnError, match=rf"(?s){EXAMPLES}\[\d\] offsets 0 to .*before 5 are no longer in the log"
        ):
            await relearn(_Trimmed(log, 5), loop, SPEC)  # type: ignore[arg-type]


def test_ranges_are_read_row_by_row() -> None:
    """A range may begin and end within records; whole records lie between."""
    rows = {4: example_rows(5, seed=4), 6: example_rows(3, seed=6), 7: example_rows(4, seed=7)}
    learned = OffsetRange(partition=1, from_offset=4, from_row=2, to_offset=7, to_row=1)
    found = _rows_of([learned], {1: rows}, SPEC).impression_id.tolist()
    expected = [*rows[4].impression_id[2:], *rows[6].impression_id, rows[7].impression_id[0]]
    assert found == expected


async def test_the_program_tells_status_and_reason(kafka_topics: TestTopics, tmp_path: Path, redis_url: str) -> None:
    """0 and JSON when equal; 1 and the reason when not possible; 2 for bad usage."""
    _, published = await lived(kafka_topics, tmp_path)
    where = kafka_topics.environment(redis_url)
    status, out, _ = await program(where, "--snapshots", str(tmp_path), "--json")
    report = json.loads(out)
    assert (status, report["equal"], report["version"]) == (0, True, published[-1])
    assert report["sha256"] == report["published_sha256"] == report["snapshot_sha256"]
    status, out, _ = await program(where, "--snapshots", str(tmp_path), "--version", str(published[0]), "--from", "0")
    assert status == 0
    assert f"version {published[0]} made again from snapshot 0: " in out
    assert out.splitlines()[-1] == "equal"
    status, out, text = await program(where, "--snapshots", str(tmp_path / "none"), "--version", "3")
    assert (status, out) == (1, "")
    assert "holds no whole snapshot of version 3" in text
    status, _, text = await program(where, "--snapshots", str(tmp_path), "--spec", "kuairand")
    assert status == 2
    assert SPEC.hash in text


async def program(environment: dict[str, str], *arguments: str) -> tuple[int | None, str, str]:
    """`python -m stream rebuild`: status, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stream", "rebuild", *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    return process.returncode, out.decode(), " ".join(error.decode().replace("│", " ").split())


def test_without_a_broker_it_is_bad_usage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The embedded broker's log has ended with its worker."""
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    found = CliRunner().invoke(app, ["rebuild", "--snapshots", str(tmp_path)])
    assert found.exit_code == 2
    assert "KAFKA_BOOTSTRAP_SERVERS" in found.stderr
