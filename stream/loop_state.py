"""What the learning loop is beside its model: what a snapshot holds of it."""

from __future__ import annotations

import msgspec

from stream.loss_watch import WatchState


class LoopState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a restarted loop needs beside the model: goes into the snapshot."""

    version: int
    positions: dict[int, tuple[int, int]]  # partition -> (offset, row) of the first row not learned
    watermarks: dict[int, int]  # partition -> watermark_ms
    watermark_ms: int
    newest_event_ms: int
    loss_watch: WatchState = WatchState()
    skipped_in_a_row: int = 0  # batches, the last ones

    def encode(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> LoopState:
        """Read what `encode` wrote; msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=cls)
