"""A stream switches to a new base: its number among the versions, and the examples that it has not learned.

::

    versions   … 41 42 43 | 44 = the base        45 46 … 61 | 62 …
    learned    by the     | from the archive,    what came  | as
               line       | up to its offsets    since      | ever
    published  yes        | no                   61 whole   | yes

The old line's weights are served until the new line knows all that it did: its first publication is a snapshot of all
that came since the base's offsets. Deltas do not lead from the old line there, so that serving loads that snapshot.

Before it gets its number the base learns that tail on trial (`stream.learn.base_gate`): one that is worse than the
serving line, or that cannot be compared with it, waits on, and the old line goes on.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog

from learners.deepfm.model import DeepFM
from learners.features.spec import FeatureSpec
from learners.snapshots.manifest import SnapshotError, read_manifest
from learners.snapshots.next_base import forget_waiting_base, take_waiting_base, waiting_base
from learners.snapshots.snapshot import Snapshot, versions
from learners.snapshots.store import store_of
from stream.kafka.log_reader import LogEndsEarlierError, LogReader, sound
from stream.learn.base_gate import Scored, Tail, mature, verdict
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.learn.outcomes import Diverged, Learned, LearnOutcome
from stream.learn.published import last_published
from stream.learn.relearn import loop_state
from stream.records.columns import RecordError
from stream.records.examples_codec import decode_examples
from stream.records.internal import decode_journal
from stream.records.topics import EXAMPLES, JOURNAL
from stream.records.validity import learnable

_READ_AHEAD_RECORDS = 32  # a partition, kept in memory
_LAST_RECORDS = 64  # among which the last journal record is looked for first
_FIRST_BACK_RECORDS = 256  # a partition, read back from the archive's end where too few rows came since; then 4 times
_ENOUGH_CLICKS, _MOST_BACK_ROWS = 10_000, 500_000  # noise below what is tolerated; some ten seconds

Figures = dict[str, float | str]

_log = structlog.get_logger(__name__)


async def take_base(
    log: LogReader,
    root: str,
    spec: FeatureSpec,
    config: LearningConfig,
    partitions: int,
    *,
    new_log: bool,
    on_full: Callable[[BaseException], None] = lambda error: None,
) -> bool:
    """Give the base that waits in the store the number after all others; False when none waits, or it is refused.

    Killed in the midst of it, the next start does it again, or finds it done.

    Parameters
    ----------
    config
        How its line will learn; with ``force_base`` it is taken without a trial.
    new_log
        The log is another one than the base's examples came from: its offsets mean nothing, and there is no tail.
    on_full
        Told why the base cannot be written as a version; it waits on then, and the old line goes on.

    Raises
    ------
    SnapshotSpecError
        The base is of another feature spec.
    """
    base = await asyncio.to_thread(waiting_base, root, spec_hash=spec.hash)
    if base is None:
        return False
    stored = await asyncio.to_thread(versions, root)
    ran = max(await last_published(log), await last_journaled(log))
    newest = max(ran, *stored, 0)
    if newest in stored and await asyncio.to_thread(_is_version, root, newest, base):
        await asyncio.to_thread(forget_waiting_base, root)
        return False
    if not new_log and not config.force_base:
        reason, figures = await _compared(log, base, spec, config, partitions)
        if not figures and not ran:
            _log.info("no line serves yet, the new base is taken", not_compared=reason)
        elif not _passes(reason, figures):
            return False
    taken = replace(base, version=newest + 1, offsets={} if new_log else base.offsets)
    try:
        written = await asyncio.to_thread(take_waiting_base, root, taken)
    except Exception as error:  # noqa: BLE001 - of any store's client
        on_full(error)
        return False
    _log.info("going over to a new base", version=taken.version, url=written.url, offsets=dict(taken.offsets))
    return True


def _passes(worse: str, figures: Figures) -> bool:
    """Whether the base is no worse than the line that serves; the log says why not, and the figures either way."""
    if worse:
        _log.error(
            "the new base is refused, the old line goes on",
            reason=worse,
            **figures,
            remedy="train another one (python -m learners base): it takes the place of this one, which is tried again "
            "at the next start. MILLSTREAM_FORCE_BASE=1 takes it as it is",
        )
    else:
        _log.info("the new base is no worse than the serving line", **figures)
    return not worse


async def _compared(
    log: LogReader, base: Snapshot, spec: FeatureSpec, config: LearningConfig, partitions: int
) -> tuple[str, Figures]:
    """Why it is worse, "" where it is not, and the figures, none where it could not be compared.

    It is judged after learning what came since its offsets; nothing of that is kept.
    """
    loop = LearningLoop(base.model(), config, partitions, state=loop_state(base), version=base.version)
    starts = {partition: loop.next_offset(partition) for partition in range(partitions)}
    window_ms = round(config.click_window_s * 1000)
    tail, heard_ms = Tail(), dict.fromkeys(starts, 0)
    try:
        async for record in as_they_came(log, starts):
            try:
                rows, watermark_ms = decode_examples(record.value, spec)
            except RecordError:  # rejected when it is learned
                continue
            heard_ms[record.partition] = max(heard_ms[record.partition], watermark_ms)
            if diverged := _keep(loop.step(rows, record.partition, record.offset, watermark_ms), tail):
                return diverged, {}
        if diverged := _keep(loop.flush(), tail):
            return diverged, {}
        found = verdict(tail.rows(), loop.watermark_ms - window_ms)
        if found is None:
            await _read_back(log, base.model(), spec, starts, tail, heard_ms, window_ms)
            found = verdict(tail.rows(), _least(heard_ms) - window_ms, seen=True)
    except LogEndsEarlierError as error:
        return str(error), {}
    if found is None:
        shown, clicks = _count(tail, _least(heard_ms) - window_ms)
        return f"not compared: {shown} mature rows" + (f", {clicks} of them clicked" if shown else ""), {}
    return found.worse, found.figures()


def _keep(outcomes: Sequence[LearnOutcome], tail: Tail) -> str:
    """Add the rows learned on trial; why the trial ends, "" where it goes on."""
    for outcome in outcomes:
        if isinstance(outcome, Learned):
            of = outcome.rows
            tail.add(Scored(of.kind, of.impression_id, of.ts_ms, of.logit, outcome.logits))
        elif isinstance(outcome, Diverged):
            return f"it diverges on what came since its archive: {outcome.detail}"
    return ""


async def _read_back(
    log: LogReader,
    model: DeepFM,
    spec: FeatureSpec,
    ends: Mapping[int, int],
    tail: Tail,
    heard_ms: dict[int, int],
    window_ms: int,
) -> None:
    """Add rows before the offsets ``ends``, newest first, scored by the base as it was trained, until they are enough.

    ``heard_ms``, the watermarks by partition, are moved on by theirs.
    """
    ends, records, added = dict(ends), _FIRST_BACK_RECORDS, 0
    while any(ends.values()) and added < _MOST_BACK_ROWS:
        for partition, end in ends.items():
            ends[partition] = max(0, end - records)
            async with aclosing(log.read(EXAMPLES, partition, ends[partition], stop=end)) as found:
                async for record in found:
                    try:
                        rows, watermark_ms = decode_examples(record.value, spec)
                    except RecordError:  # rejected when it was learned
                        continue
                    heard_ms[partition] = max(heard_ms[partition], watermark_ms)
                    rows = rows.take(learnable(rows, model.heads.names))
                    logits = model.predict_many(rows.rows())
                    tail.add(Scored(rows.kind, rows.impression_id, rows.ts_ms, rows.logit, logits))
                    added += len(rows)
        if _count(tail, _least(heard_ms) - window_ms)[1] >= _ENOUGH_CLICKS:
            return
        records *= 4


def _count(tail: Tail, mature_until_ms: int) -> tuple[int, int]:
    """Mature impressions and how many of them were clicked."""
    if (rows := tail.rows()) is None:
        return 0, 0
    found, clicked = mature(rows, mature_until_ms)
    return len(found), int(clicked.sum())


def _least(heard_ms: Mapping[int, int]) -> int:
    """The least watermark of the partitions that the log holds anything of."""
    return min((at for at in heard_ms.values() if at), default=0)


def _is_version(root: str, version: int, base: Snapshot) -> bool:
    try:
        manifest = read_manifest(store_of(root).url(f"v{version:012d}"))
    except SnapshotError:
        return False
    return manifest.created_from == "base" and manifest.weights_sha256 == base.weights_sha256()


async def last_journaled(log: LogReader) -> int:
    """The version of the journal's last step; 0 when it is empty."""
    for start in (await log.tail_start(JOURNAL, 0, _LAST_RECORDS), 0):
        newest = max([step.version async for step in sound(log, JOURNAL, decode_journal, start)], default=0)
        if newest:
            return newest
    return 0


async def as_they_came(log: LogReader, starts: Mapping[int, int]) -> AsyncIterator[Any]:
    """The examples' records of all partitions, each from its start to its end, by the time at which they were written.

    That is about the order in which a learner took them that was not behind.
    """
    waiting: list[tuple[int, int, int, Any]] = []  # timestamp, partition, offset: no two are equal
    left: dict[int, int] = {}  # partition → records of it that wait

    async def read_on(partition: int, start: int) -> None:
        found: list[Any] = []
        async with aclosing(log.read(EXAMPLES, partition, start)) as records:
            async for record in records:
                found.append(record)
                if len(found) == _READ_AHEAD_RECORDS:
                    break
        left[partition] = len(found)
        for record in found:
            heapq.heappush(waiting, (record.timestamp, partition, record.offset, record))

    for partition, start in starts.items():
        await read_on(partition, start)
    while waiting:
        *_, partition, offset, record = heapq.heappop(waiting)
        yield record
        left[partition] -= 1
        if not left[partition]:
            await read_on(partition, offset + 1)
