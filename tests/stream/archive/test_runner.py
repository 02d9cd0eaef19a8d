"""The archiver over a real broker, without Faust: files, commits, kills, a new folder, another log."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from learners.examples.archive import read_examples
from learners.examples.archive_writer import NamedSpec
from learners.examples.examples import Examples
from stream.archive.part_buffer import ArchiveConfig, ArchivePart
from stream.archive.runner import ArchiveRunner
from stream.archive.store import ArchiveStore, archive_store_of
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogEndsEarlierError
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.metrics import WorkerMetrics
from stream.records.examples_codec import decode_examples
from stream.records.topics import EXAMPLES
from tests.brokers import TestTopics
from tests.stream.learner_harness import Killed
from tests.stream.measured import measured
from tests.stream.pipeline import SPEC, START_MS, example_rows

CONFIG = ArchiveConfig(archive_rows=40, archive_interval_s=60.0)


async def written(broker: Broker, count: int = 40) -> list[InputRecord]:
    """Records of all partitions in the topic, each bringing 5 s; two of them cannot be read."""
    rng = np.random.default_rng(3)
    records = []
    async with shared_writer(broker) as writer:
        for at in range(count):
            partition = int(rng.integers(broker.partitions))
            rows = example_rows(int(rng.integers(0, 12)), seed=at)
            value = b"junk" if at in (5, 22) else rows.to_record(SPEC.hash, START_MS + 5_000 * at).encode()
            (offset,) = await writer.write([Outgoing(EXAMPLES, value, partition=partition)])
            records.append(InputRecord(EXAMPLES, partition, offset, value, START_MS))
    return records


def keys(count: int = 40) -> list[int]:
    """The impressions of all records that can be read, sorted."""
    rng = np.random.default_rng(3)
    found: list[int] = []
    for at in range(count):
        rng.integers(4)
        rows = example_rows(int(rng.integers(0, 12)), seed=at)
        found += [] if at in (5, 22) else rows.impression_id.tolist()
    return sorted(found)


def runner(broker: Broker, store: ArchiveStore) -> ArchiveRunner:
    """A fresh archiver."""
    return ArchiveRunner(broker, SPEC, CONFIG, store, WorkerMetrics(CollectorRegistry()))


async def assign(one: ArchiveRunner, broker: Broker) -> None:
    """Give it all partitions."""
    await one.on_assigned(frozenset(range(broker.partitions)))


def check(archived: Examples) -> None:
    """All rows of the log, each once, each at its place."""
    assert sorted(archived.columns["impression_id"].tolist()) == keys()
    assert archived.spec_hash == SPEC.hash


def no_gaps(folder: Path) -> None:
    """The ranges of every partition touch."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for path in folder.rglob("*.parquet"):
        partition, first, end = path.stem.split("-")
        ranges.setdefault(partition, []).append((int(first), int(end)))
    for of_partition in map(sorted, ranges.values()):
        assert [first for first, _ in of_partition] == [0, *(end for _, end in of_partition)][: len(of_partition)]


async def test_all_examples_are_in_the_archive_and_nothing_is_committed_before(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Full files on the way, the rest at the stop; a commit never passes a row that is in no file."""
    broker = await find_broker(kafka_topics.settings())
    records = await written(broker)
    one = runner(broker, archive_store_of(str(tmp_path)))
    await assign(one, broker)
    for record in records:
        await one.work([record])
        archived = read_examples(tmp_path) if list(tmp_path.rglob("*.parquet")) else None  # noqa: ASYNC240
        for (_, partition), offset in one.offsets_to_commit().items():
            before = [r for r in records if r.partition == partition and r.offset < offset and r.value != b"junk"]
            archived_rows = 0 if archived is None else int((archived.columns["partition"] == partition).sum())
            assert archived_rows >= sum(rows_in(r) for r in before)
    assert len(list(tmp_path.rglob("*.parquet"))) > 4  # noqa: ASYNC240
    await one.on_revoked()
    check(read_examples(tmp_path))
    no_gaps(tmp_path)
    ends = {(EXAMPLES, record.partition): record.offset + 1 for record in records}
    assert one.offsets_to_commit() == ends


def rows_in(record: InputRecord) -> int:
    """Rows of a record."""
    return len(decode_examples(record.value, SPEC)[0])


class _Dying:
    """Dies before or after its n-th file is there."""

    def __init__(self, store: ArchiveStore, number: int, after: bool) -> None:
        self._store, self._left, self._after = store, number, after
        self.url = store.url

    def up_to(self) -> dict[int, int]:
        return self._store.up_to()

    def write(self, part: ArchivePart, spec: NamedSpec) -> None:
        self._left -= 1
        if self._left or self._after:
            self._store.write(part, spec)
        if not self._left:
            raise Killed


@pytest.mark.parametrize("after", [False, True], ids=["before the file is there", "file there, nothing committed"])
async def test_killed_and_restarted_leaves_neither_gap_nor_double(
    after: bool, kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """Three deaths at different files; records come again from the last commit."""
    broker = await find_broker(kafka_topics.settings())
    records = await written(broker)
    store = archive_store_of(str(tmp_path))
    committed: dict[TopicPartition, int] = {}
    for number in (1, 2, 3):
        dying = runner(broker, _Dying(store, number, after))
        with pytest.raises(Killed):
            await feed(dying, broker, records, committed)
        committed |= dying.offsets_to_commit()
    await feed(runner(broker, store), broker, records, committed)
    archived = read_examples(tmp_path)
    check(archived)
    parts = [len(read_examples(path)) for path in tmp_path.rglob("*.parquet")]  # noqa: ASYNC240
    assert sum(parts) == len(archived), "no row is in two files"
    no_gaps(tmp_path)


async def feed(
    one: ArchiveRunner, broker: Broker, records: Sequence[InputRecord], committed: dict[TopicPartition, int]
) -> None:
    """Everything from the commit on, then a stop."""
    await assign(one, broker)
    for record in records:
        if record.offset >= committed.get(record.topic_partition, 0):
            await one.work([record])
    await one.on_revoked()


async def test_a_new_folder_gets_what_the_log_still_holds(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """The group's commits are of the old folder: what came before them is read from the log."""
    broker = await find_broker(kafka_topics.settings())
    records = await written(broker)
    await feed(runner(broker, archive_store_of(str(tmp_path))), broker, records, {(EXAMPLES, p): 3 for p in range(4)})
    check(read_examples(tmp_path))


async def test_a_log_that_ends_before_the_archive_is_refused(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Its offsets would count as archived."""
    broker = await find_broker(kafka_topics.settings())
    (tmp_path / f"p2-{0:020d}-{500:020d}.parquet").touch()
    with pytest.raises(LogEndsEarlierError, match="ends before offset 500"):
        await assign(runner(broker, archive_store_of(str(tmp_path))), broker)


async def test_an_archive_behind_a_url(kafka_topics: TestTopics, tmp_path: Path) -> None:
    """Parts are sent whole, and a restart finds them."""
    broker = await find_broker(kafka_topics.settings())
    records = await written(broker)
    url = f"memory://{uuid.uuid4().hex}/archive"
    dying = runner(broker, _Dying(archive_store_of(url), 3, after=True))
    with pytest.raises(Killed):
        await feed(dying, broker, records, {})
    await feed(runner(broker, archive_store_of(url)), broker, records, dict(dying.offsets_to_commit()))
    files, path = fsspec.core.url_to_fs(url)
    files.get(path, str(tmp_path / "copy"), recursive=True)
    check(read_examples(tmp_path / "copy"))
    no_gaps(tmp_path / "copy")


class _Full:
    """Refuses to be read or written for a while."""

    def __init__(self, store: ArchiveStore) -> None:
        self._store = store
        self.url = store.url
        self.readable = self.writable = False

    def up_to(self) -> dict[int, int]:
        if not self.readable:
            raise PermissionError(13, "Permission denied")
        return self._store.up_to()

    def write(self, part: ArchivePart, spec: NamedSpec) -> None:
        if not self.writable:
            raise OSError(28, "No space left on device")
        self._store.write(part, spec)


async def test_while_the_folder_fails_parts_wait_their_partitions_pause_and_nothing_is_lost(
    kafka_topics: TestTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away at the assignment, then full, then sound again: all rows once, in files without gaps, by itself."""
    monkeypatch.setattr("stream.agents.store_health.RETRY_S", 0.0)
    broker = await find_broker(kafka_topics.settings())
    records = await written(broker)
    store, metrics = _Full(archive_store_of(str(tmp_path))), WorkerMetrics(CollectorRegistry())
    one = ArchiveRunner(broker, SPEC, CONFIG, store, metrics)
    await assign(one, broker)
    assert {partition for _, partition in one.inbox.paused} == set(range(broker.partitions))
    await one.work(records[:4])
    await one.tick()
    assert measured(metrics, "store_failing", store="archive") == 1
    store.readable = True
    await one.tick()
    assert not one.inbox.paused
    await one.work(records[4:])
    assert one.inbox.paused
    assert "No space left" in metrics.degraded["archive"]
    assert measured(metrics, "archive_waiting_rows") > CONFIG.archive_rows
    committed = dict(one.offsets_to_commit())
    for (_, partition), offset in committed.items():
        before = [r for r in records if r.partition == partition and r.offset < offset and r.value != b"junk"]
        assert sum(map(rows_in, before)) == 0
    store.writable = True
    await one.tick()
    assert not one.inbox.paused
    assert not metrics.degraded
    assert measured(metrics, "store_failing", store="archive") == 0
    await one.on_revoked()
    check(read_examples(tmp_path))
    no_gaps(tmp_path)


async def test_a_stop_while_the_folder_is_full_leaves_all_to_the_next_start(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """What could not be written is not committed, and read again."""
    broker = await find_broker(kafka_topics.settings())
    records = await written(broker)
    store = _Full(archive_store_of(str(tmp_path)))
    store.readable = True
    one = ArchiveRunner(broker, SPEC, CONFIG, store, WorkerMetrics(CollectorRegistry()))
    await feed(one, broker, records, {})
    assert not list(tmp_path.rglob("*.parquet"))  # noqa: ASYNC240
    await feed(runner(broker, archive_store_of(str(tmp_path))), broker, records, dict(one.offsets_to_commit()))
    check(read_examples(tmp_path))
    no_gaps(tmp_path)
