"""A snapshot written beside the learning, which goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from learners.model_state import ModelCopy, State
from learners.snapshot import Snapshot, Written, write_snapshot

_COPY_BYTES = 8 << 20  # between two learning steps: some 30 ms, most of them for fresh memory


async def write_beside(copy: ModelCopy, root: str, snapshot_of: Callable[[State], Snapshot]) -> Written:
    """Copy a piece between two learning steps; then sort, hash and write in a thread.

    Parameters
    ----------
    copy
        The model's, just begun.
    root
        Directory or URL of the snapshots.
    snapshot_of
        Makes the snapshot of the copied state; called in the thread.
    """
    while not copy.step(_COPY_BYTES):
        await asyncio.sleep(0)
    return await asyncio.to_thread(lambda: write_snapshot(root, snapshot_of(copy.state())))
