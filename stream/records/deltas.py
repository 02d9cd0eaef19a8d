"""Deltas on the weights topic: split below the broker's message limit, applied only when whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import xxhash

from learners.deepfm.delta import Delta, DeltaError, weights_of
from stream.records.wire import DeltaPart

_HEADER_BYTES = 512  # room for the scalar fields of a part and their names


class DeltaGapError(DeltaError):
    """A version or a part is missing between the current version and what came."""


class DeltaSpecError(DeltaError):
    """The weights belong to another feature spec."""


class DeltaChecksumError(DeltaError):
    """The joined parts are not the bytes that were sent."""


def to_parts(delta: Delta, max_part_bytes: int) -> list[DeltaPart]:
    """Split a delta into parts of at most ``max_part_bytes`` encoded; the click times ride on the first.

    Raises
    ------
    ValueError
        A limit that leaves no room for weights.
    """
    clicks = delta.clicks_produced_ms.astype("<i8").tobytes()
    room, first_room = max_part_bytes - _HEADER_BYTES, max_part_bytes - _HEADER_BYTES - len(clicks)
    if first_room < 1:
        raise ValueError(
            f"max_part_bytes={max_part_bytes} must exceed {_HEADER_BYTES + len(clicks)}, the header and the times of "
            f"{len(delta.clicks_produced_ms)} clicks: no part could carry weights. Raise it up to the broker's limit."
        )
    payload = delta.payload()
    cuts = [0, *range(first_room, len(payload), room), len(payload)]
    slices = [payload[start:end] for start, end in pairwise(cuts)]
    checksum = xxhash.xxh3_64_intdigest(payload)
    return [
        DeltaPart(
            spec_hash=delta.spec_hash,
            version=delta.version,
            parent=delta.parent,
            part=part,
            parts=len(slices),
            checksum=checksum,
            watermark_ms=delta.watermark_ms,
            newest_event_ms=delta.newest_event_ms,
            clicks_produced_ms=clicks if part == 0 else b"",
            payload=data,
        )
        for part, data in enumerate(slices)
    ]


class DeltaAssembler:
    """Joins the parts of one learner's deltas, in the order of the topic, onto the version of the caller.

    Parts of versions already applied are skipped, so reading may start anywhere before the gap. A learner that restarts
    begins its unfinished delta again at part 0.

    Parameters
    ----------
    version
        The current version, usually a snapshot's.
    spec_hash
        The feature spec; deltas of another are refused.
    """

    def __init__(self, *, version: int, spec_hash: str) -> None:
        self.version = version
        self._spec_hash = spec_hash
        self._parts: list[DeltaPart] = []

    def add(self, part: DeltaPart) -> Delta | None:
        """The whole delta when this part completes it, else None; the current version then moves on.

        After an error the assembler is at the version it had before and no unfinished parts.

        Raises
        ------
        DeltaGapError
            The delta does not build on the current version, or a part is missing.
        DeltaChecksumError
            The parts were altered.
        DeltaSpecError
            Another feature spec; unfinished parts of this one stay.
        DeltaError
            A payload that cannot be read.
        """
        self.check_spec(part)
        try:
            return self._add(part)
        except DeltaError:
            self._parts = []
            raise

    def check_spec(self, part: DeltaPart) -> None:
        """Raise DeltaSpecError for weights of another feature spec."""
        if part.spec_hash != self._spec_hash:
            raise DeltaSpecError(
                f"delta {part.version} was learned with feature spec {part.spec_hash}, here runs {self._spec_hash}: "
                "its ids mean different things, so it is not applied. Start the learner and serving with the same "
                "--spec."
            )

    def _add(self, part: DeltaPart) -> Delta | None:
        if part.version == part.parent:
            return self._heartbeat(part)
        if part.version <= self.version:
            return None
        if part.parent != self.version:
            raise DeltaGapError(
                f"delta {part.version} builds on version {part.parent}, the current version is {self.version}: rows "
                "changed in between would be missing. Reload the newest snapshot."
            )
        if not self._follows(part):
            return None
        self._parts.append(part)
        return self._joined() if len(self._parts) == part.parts else None

    def _heartbeat(self, part: DeltaPart) -> Delta | None:
        if part.version < self.version:
            return None
        if part.version > self.version:
            raise DeltaGapError(
                f"a heartbeat of version {part.version} came while {self.version} is current: a delta was missed. "
                "Reload the newest snapshot."
            )
        return Delta.heartbeat(
            spec_hash=part.spec_hash,
            version=part.version,
            watermark_ms=part.watermark_ms,
            newest_event_ms=part.newest_event_ms,
        )

    def _follows(self, part: DeltaPart) -> bool:
        """Whether the part is the next one; False for a repeated one. Part 0 of other content starts afresh."""
        parts = self._parts
        same = bool(parts) and (parts[0].version, parts[0].checksum) == (part.version, part.checksum)
        if same and part.part < len(parts):
            return False
        if part.part == 0:
            self._parts = []
            return True
        if not same or part.part != len(parts):
            raise DeltaGapError(
                f"part {part.part} of {part.parts} of delta {part.version} came after {len(parts)} parts: one is "
                "missing. Reload the newest snapshot."
            )
        return True

    def _joined(self) -> Delta:
        first = self._parts[0]
        payload = b"".join(part.payload for part in self._parts)
        found = xxhash.xxh3_64_intdigest(payload)
        if found != first.checksum:
            raise DeltaChecksumError(
                f"delta {first.version} of {len(payload)} bytes has checksum {found:016x}, its parts say "
                f"{first.checksum:016x}: its bytes were altered. Reload the newest snapshot."
            )
        weights = weights_of(payload)
        self._parts = []
        self.version = first.version
        return Delta(
            spec_hash=first.spec_hash,
            version=first.version,
            parent=first.parent,
            watermark_ms=first.watermark_ms,
            newest_event_ms=first.newest_event_ms,
            clicks_produced_ms=np.frombuffer(first.clicks_produced_ms, "<i8").astype(np.int64),
            keys=weights.keys,
            values=weights.values,
            removed=weights.removed,
            dense=weights.dense,
        )
