"""What waits between a Faust agent and the task that works it off, and what a runner is to the worker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from stream.kafka.input_record import InputRecord, TopicPartition


class Runner(Protocol):
    """The shell around a core: takes records in, keeps the log, says what may be committed."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The input topics, by their names in the table; all have the same partitions."""
        ...

    @property
    def inbox(self) -> Inbox:
        """Where the agent puts what it reads."""
        ...

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Restore these partitions, which are ours from here on, and forget all others. An error ends the process."""
        ...

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Work off records of assigned partitions. An error ends the process: nothing more is committed."""
        ...

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """A log goes on with other records than those taken in: what comes from ``offset`` on is new."""
        ...

    async def tick(self) -> None:
        """Called a few times a second: what must happen although nothing arrives."""
        ...

    async def on_revoked(self) -> None:
        """Store what is done, then forget all partitions: they are assigned again, here or elsewhere."""
        ...

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """For each input partition the first offset to read again after a restart."""
        ...


class Inbox:
    """A bounded queue from which everything that waits is taken at once.

    One item costs as much to hand over as a hundred, so a consumer that falls behind takes more at a time: batches
    grow with the load, and nothing waits for a batch to fill. What the broker sends while it is full stays there.

    Parameters
    ----------
    max_items, max_bytes : what may wait; a `put` goes in whole, beyond the bound if need be, as long as there is room.
    at_once : items that are taken together, so that publishing and commits come between also while it catches up.
    """

    def __init__(self, max_items: int = 512, max_bytes: int = 64 << 20, at_once: int = 64) -> None:
        self.paused: frozenset[TopicPartition] = frozenset()  # not to be read on for now: it would only wait in memory
        self.skip_to: dict[TopicPartition, int] = {}  # what comes before these offsets is known; read on there
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._at_once = at_once
        self._items: deque[InputRecord] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, records: Sequence[InputRecord]) -> None:
        """Append; waits while the inbox is full."""
        await self._has_room.wait()
        self._items.extend(records)
        self._bytes += sum(map(_bytes, records))
        self._filled.set()
        self._note_room()

    def wake(self) -> None:
        """Let `filled` return although nothing waits: there is something else to do."""
        self._filled.set()

    @property
    def is_full(self) -> bool:
        """Whether as much waits as is taken at once, or as may wait."""
        return len(self._items) >= self._at_once or not self._has_room.is_set()

    async def filled(self) -> None:
        """Return when something waits, or at `wake`."""
        await self._filled.wait()

    def take(self) -> list[InputRecord]:
        """The oldest items, at most ``at_once``; none when it is empty."""
        return self._take(self._at_once)

    def _take(self, at_most: int) -> list[InputRecord]:
        taken = [self._items.popleft() for _ in range(min(at_most, len(self._items)))]
        self._bytes -= sum(map(_bytes, taken))
        if not self._items:
            self._filled.clear()
        self._note_room()
        return taken

    def clear(self) -> None:
        """Drop everything."""
        self._take(len(self._items))

    def _note_room(self) -> None:
        if len(self._items) < self._max_items and self._bytes < self._max_bytes:
            self._has_room.set()
        else:
            self._has_room.clear()


def _bytes(item: InputRecord) -> int:
    return len(item.value or b"")
