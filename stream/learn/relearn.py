"""A model again from the log: a snapshot's weights, then the journal's batches in their very rows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from learners.snapshots.snapshot import Snapshot
from stream.kafka.log_reader import LogReader, sound
from stream.learn.learn_order import in_learn_order
from stream.learn.loop import Learned, LearningLoop, LoopState, Skipped
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows, concat
from stream.records.examples_codec import SpecShape, decode_examples
from stream.records.internal import decode_journal
from stream.records.topics import EXAMPLES, JOURNAL
from stream.records.wire import JournalRecord, OffsetRange

_LAST_RECORDS = 4  # that are read for their watermark
_FETCHED_ROWS = 65_536  # a fetch costs more than a batch


class RelearnError(RuntimeError):
    """The log does not lead from the snapshot to the version asked for; the message says what is missing."""


def loop_state(snapshot: Snapshot) -> LoopState | None:
    """Where the loop stood, or where the base ends that the snapshot is; None for a base that has no offsets."""
    if (state := LoopState.from_arrays(snapshot.state)) is not None:
        return state
    if not snapshot.offsets:
        return None
    return LoopState(
        version=snapshot.version,
        positions={partition: (offset, 0) for partition, offset in snapshot.offsets.items()},
        watermarks={},  # to be heard of each partition: the base's own is that of the furthest
        watermark_ms=0,
        newest_event_ms=snapshot.newest_event_ms,
    )


async def relearn(
    log: LogReader,
    loop: LearningLoop,
    spec: SpecShape,
    *,
    last_version: int | None = None,
    base_offsets: Mapping[int, int] | None = None,
    progress: Callable[[Learned | Skipped], None] = lambda step: None,
) -> None:
    """Learn what the journal holds beyond the loop's version, up to ``last_version`` or its end.

    ``base_offsets`` are those of the base that the loop starts from, if it does: no batch may reach back behind them.

    Raises
    ------
    RelearnError
        A version or examples that the log no longer holds, or a batch that cannot be learned again.
    """
    async for journal, rows in _batches(log, loop.version, last_version, spec, loop.partitions):
        _check_start(journal, base_offsets or {})
        try:
            outcomes = loop.relearn(journal, rows)
        except ValueError as error:
            raise await _unlike(log, journal, error) from error
        progress(next(one for one in outcomes if isinstance(one, (Learned, Skipped))))


async def hear_watermarks(log: LogReader, loop: LearningLoop, spec: SpecShape, latest_ms: int) -> None:
    """How far time had gone on: the watermark of the last record that was taken, behind which markers may stand.

    One beyond ``latest_ms`` is taken for that.
    """
    for partition, position in loop.positions().items():
        stop = position.offset + (position.row > 0)
        async for record in log.read(EXAMPLES, partition, max(0, stop - _LAST_RECORDS), stop=stop):
            with suppress(RecordError):  # rejected when it was taken
                loop.hear(partition, min(latest_ms, decode_examples(record.value, spec)[1]))


def _check_start(journal: JournalRecord, base_offsets: Mapping[int, int]) -> None:
    for learned in journal.ranges:
        if learned.from_offset < (known := base_offsets.get(learned.partition, 0)):
            raise RelearnError(
                f"version {journal.version} was learned from {EXAMPLES}[{learned.partition}] offset "
                f"{learned.from_offset} on, but the base holds what stands before {known}: the journal is of a stream "
                "that started from another snapshot. Give that stream's folder; a new base goes there, too, and waits "
                "for the learner (python -m learners base --out)."
            )


async def _batches(
    log: LogReader, version: int, last_version: int | None, spec: SpecShape, partitions: int
) -> AsyncIterator[tuple[JournalRecord, ExampleRows]]:
    """The journal's steps after ``version`` with their rows; many are fetched together."""
    waiting: list[JournalRecord] = []
    for journal in await _journal_after(log, version, last_version, partitions):
        waiting.append(journal)
        if sum(one.rows for one in waiting) >= _FETCHED_ROWS:
            for batch in await _fetched(log, waiting, spec):
                yield batch
            waiting = []
    for batch in await _fetched(log, waiting, spec):
        yield batch


async def _journal_after(
    log: LogReader, version: int, last_version: int | None, partitions: int
) -> list[JournalRecord]:
    """The steps ``version`` + 1, + 2, … as the journal holds them, each once.

    What is no step is put aside: were it one that was damaged, a version would be missing, which is refused.
    """
    decode = partial(decode_journal, partitions=partitions)
    found: list[JournalRecord] = []
    beyond = 0  # the first version after a hole
    async for journal in sound(log, JOURNAL, decode):
        if last_version is not None and journal.version > last_version:
            continue
        if journal.version == version + len(found) + 1:
            found.append(journal)
        elif journal.version > version + len(found) + 1 and not found:
            oldest = await log.oldest(JOURNAL, 0)
            raise RelearnError(
                f"the journal ({JOURNAL}, oldest offset {oldest}) begins with version {journal.version}, needed are "
                f"{version + 1} on: how the versions between were learned is no longer known. Start from a snapshot of "
                f"version {journal.version - 1} or later, or keep the topic for longer (retention.ms)."
            )
        elif journal.version > version + len(found) + 1:
            beyond = beyond or journal.version
    reached = version + len(found)
    if beyond and (last_version is None or last_version > reached):
        raise RelearnError(
            f"the journal leads from version {version} to {reached} and goes on with {beyond}: version {beyond - 1} is "
            "a base, made by training. Start from its snapshot or a later one; if that is lost, train a new base."
        )
    if last_version is not None and reached < last_version:
        raise RelearnError(
            f"the journal ({JOURNAL}) leads from version {version} to {reached}, not to {last_version}: that version "
            "was not made from this snapshot and this log. Give a version that was published, and this stream's folder."
            f"{await _what_retention_took(log)}"
        )
    return found


async def _what_retention_took(log: LogReader) -> str:
    oldest = await log.oldest(JOURNAL, 0)
    if not oldest:
        return ""
    return (
        f" Its offsets before {oldest} are no longer in the log: if the version was learned there, start from a newer "
        "snapshot, and keep the topic for longer (retention.ms)."
    )


async def _fetched(
    log: LogReader, journals: Sequence[JournalRecord], spec: SpecShape
) -> list[tuple[JournalRecord, ExampleRows]]:
    """Each partition is read once over all the ranges."""
    wanted: dict[int, tuple[int, int]] = {}
    for learned in (learned for journal in journals for learned in journal.ranges):
        first, end = learned.from_offset, learned.to_offset + (learned.to_row > 0)
        known = wanted.get(learned.partition, (first, end))
        wanted[learned.partition] = (min(first, known[0]), max(end, known[1]))
    records: dict[int, dict[int, ExampleRows]] = {}
    for partition, (first, end) in wanted.items():
        records[partition] = {}
        async for record in log.read(EXAMPLES, partition, first, stop=end):
            try:
                rows, _ = decode_examples(record.value, spec)
            except RecordError:  # rejected when it was learned, too
                continue
            records[partition][record.offset] = in_learn_order(rows)
    return [(journal, _rows_of(journal.ranges, records, spec)) for journal in journals]


def _rows_of(ranges: Sequence[OffsetRange], records: dict[int, dict[int, ExampleRows]], spec: SpecShape) -> ExampleRows:
    parts = [ExampleRows.empty(spec.id_columns, spec.dense_inputs)]
    for learned in ranges:
        rows_at = records[learned.partition]
        offsets = [*rows_at]  # ascending, as they were read: not all in between hold a record
        first, end = learned.from_offset, learned.to_offset + (learned.to_row > 0)
        for offset in offsets[bisect_left(offsets, first) : bisect_left(offsets, end)]:
            rows = rows_at[offset]
            first_row = learned.from_row if offset == learned.from_offset else 0
            end_row = learned.to_row if offset == learned.to_offset else len(rows)
            parts.append(rows.take(slice(first_row, end_row)))
    return concat(parts)


async def _unlike(log: LogReader, journal: JournalRecord, error: ValueError) -> RelearnError:
    """Why the rows are not those of the journal: mostly because the log has deleted them."""
    for learned in journal.ranges:
        oldest = await log.oldest(EXAMPLES, learned.partition)
        if learned.from_offset < oldest:
            return RelearnError(
                f"version {journal.version} was learned from {EXAMPLES}[{learned.partition}] offsets "
                f"{learned.from_offset} to {learned.to_offset}, of which those before {oldest} are no longer in the "
                "log: it cannot be learned again. Start from a newer snapshot, or keep the topic for longer "
                "(retention.ms)."
            )
    return RelearnError(str(error))
