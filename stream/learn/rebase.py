"""A stream switches to a new base: its number among the versions, and the examples that it has not learned.

::

    versions   … 41 42 43 | 44 = the base        45 46 … 61 | 62 …
    learned    by the     | from the archive,    what came  | as
               line       | up to its offsets    since      | ever
    published  yes        | no                   61 whole   | yes

The old line's weights are served until the new line knows all that it did: its first publication is a snapshot of all
that came since the base's offsets. Deltas do not lead from the old line there, so that serving loads that snapshot.

Before it gets its number the base learns that tail on trial (`stream.learn.base_gate`): one that is worse than the
serving line waits on, and the old line goes on.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
import structlog

from learners.features.spec import FeatureSpec
from learners.snapshots.next_base import forget_waiting_base, take_waiting_base, waiting_base
from learners.snapshots.snapshot import Snapshot, SnapshotError, read_manifest, versions
from learners.snapshots.store import store_of
from stream.kafka.log_reader import LogEndsEarlierError, LogReader
from stream.learn.base_gate import Scored, Tail, verdict
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.learn.outcomes import Diverged, Learned
from stream.learn.published import last_published
from stream.learn.relearn import loop_state
from stream.records.columns import RecordError
from stream.records.examples_codec import decode_examples
from stream.records.topics import EXAMPLES, JOURNAL
from stream.records.wire import JournalRecord

_READ_AHEAD_RECORDS = 32  # a partition, kept in memory
_LAST_RECORDS = 64  # among which the last journal record is looked for first

_log = structlog.get_logger(__name__)


async def take_base(
    log: LogReader, root: str, spec: FeatureSpec, config: LearningConfig, partitions: int, *, new_log: bool
) -> bool:
    """Give the base that waits in the store the number after all others; False when none waits, or it is refused.

    Killed in the midst of it, the next start does it again, or finds it done.

    Parameters
    ----------
    config
        How its line will learn; with ``force_base`` it is taken without a trial.
    new_log
        The log is another one than the base's examples came from: its offsets mean nothing, and there is no tail.

    Raises
    ------
    SnapshotSpecError
        The base is of another feature spec.
    """
    base = await asyncio.to_thread(waiting_base, root, spec_hash=spec.hash)
    if base is None:
        return False
    stored = await asyncio.to_thread(versions, root)
    newest = max(await last_published(log), await last_journaled(log), *stored, 0)
    if newest in stored and await asyncio.to_thread(_is_version, root, newest, base):
        await asyncio.to_thread(forget_waiting_base, root)
        return False
    if not new_log and not config.force_base and not await _passes(log, base, spec, config, partitions):
        return False
    taken = replace(base, version=newest + 1, offsets={} if new_log else base.offsets)
    written = await asyncio.to_thread(take_waiting_base, root, taken)
    _log.info("going over to a new base", version=taken.version, url=written.url, offsets=dict(taken.offsets))
    return True


async def _passes(log: LogReader, base: Snapshot, spec: FeatureSpec, config: LearningConfig, partitions: int) -> bool:
    """Whether the base is no worse than the line that serves; the log says why not."""
    try:
        worse, figures = await _tried(log, base, spec, config, partitions)
    except LogEndsEarlierError as error:
        worse, figures = str(error), {}
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


async def _tried(
    log: LogReader, base: Snapshot, spec: FeatureSpec, config: LearningConfig, partitions: int
) -> tuple[str, dict[str, float]]:
    """Why it is worse, and the figures, after learning what came since its offsets; nothing of it is kept."""
    loop = LearningLoop(base.model(), config, partitions, state=loop_state(base), version=base.version)
    tail = Tail()
    starts = {partition: loop.next_offset(partition) for partition in range(partitions)}
    async for record in as_they_came(log, starts):
        try:
            rows, watermark_ms = decode_examples(record.value, spec)
        except RecordError:  # rejected when it is learned
            continue
        for outcome in [*loop.step(rows, record.partition, record.offset, watermark_ms)]:
            if isinstance(outcome, Learned):
                of = outcome.rows
                tail.add(Scored(of.kind, of.impression_id, of.ts_ms, of.logit, outcome.logits))
            elif isinstance(outcome, Diverged):
                return f"it diverges on what came since its archive: {outcome.detail}", {}
    found = verdict(tail.rows(), loop.watermark_ms - round(config.click_window_s * 1000))
    return ("", {}) if found is None else (found.worse, found.figures())


def _is_version(root: str, version: int, base: Snapshot) -> bool:
    try:
        manifest = read_manifest(store_of(root).url(f"v{version:012d}"))
    except SnapshotError:
        return False
    return manifest.created_from == "base" and manifest.weights_sha256 == base.weights_sha256()


async def last_journaled(log: LogReader) -> int:
    """The version of the journal's last step; 0 when it is empty."""
    decoder = msgspec.msgpack.Decoder(JournalRecord)
    for start in (await log.tail_start(JOURNAL, 0, _LAST_RECORDS), 0):
        newest = max([decoder.decode(record.value).version async for record in log.read(JOURNAL, 0, start)], default=0)
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
