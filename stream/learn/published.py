"""What the weights topic holds: the last version, and the weights that its deltas lead to."""

from __future__ import annotations

from learners.deepfm.delta import DeltaError
from learners.deepfm.model import DeepFM
from stream.kafka.log_reader import LogReader, sound
from stream.records.deltas import DeltaAssembler, DeltaGapError
from stream.records.internal import decode_weights
from stream.records.topics import WEIGHTS
from stream.records.wire import SnapshotNotice

_LAST_RECORDS = 64  # among which the last delta is looked for first


class NotPublishedError(RuntimeError):
    """The weights topic does not lead from the snapshot to that version; the message says why."""


async def last_published(log: LogReader) -> int:
    """The version of the last delta, heartbeat or snapshot on the weights topic; 0 when there is none."""
    for start in (await log.tail_start(WEIGHTS, 0, _LAST_RECORDS), 0):
        newest = 0
        async for part in sound(log, WEIGHTS, decode_weights, start):
            if isinstance(part, SnapshotNotice) or part.part == part.parts - 1:  # a delta cut off was not published
                newest = max(newest, part.version)
        if newest:
            return newest
    return 0


async def follow(log: LogReader, model: DeepFM, *, version: int, last_version: int) -> int:
    """Apply the topic's deltas to the weights of ``version`` until they are those of ``last_version``, as serving does.

    Returns how many deltas were applied. Raises NotPublishedError.
    """
    assembler = DeltaAssembler(version=version, spec_hash=model.shape.spec_hash)
    applied = 0
    async for part in sound(log, WEIGHTS, decode_weights):
        if isinstance(part, SnapshotNotice) or part.version == part.parent or part.version > last_version:
            continue
        try:
            if (delta := assembler.add(part)) is not None:
                model.apply(delta)
                applied += 1
        except DeltaGapError as error:
            raise NotPublishedError(
                f"the weights topic no longer holds the delta after version {assembler.version}; its next one is "
                f"{part.parent} to {part.version} ({error})"
            ) from error
        except DeltaError as error:
            raise NotPublishedError(str(error)) from error
    if assembler.version != last_version:
        raise NotPublishedError(
            f"the deltas lead from version {version} to {assembler.version}, none ends at {last_version}: that version "
            "was learned, but never published by itself"
        )
    return applied
