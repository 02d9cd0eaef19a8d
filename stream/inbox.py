"""What waits between a Faust agent and the task that works it off, and what a runner is to the worker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

Place = tuple[str, int]
"""A topic, by its name in the table, and a partition."""


class InputRecord(NamedTuple):
    """One record as it was read; ``produced_ms`` is its Kafka timestamp (wall clock)."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    produced_ms: int
    content_type: str | None = None

    @property
    def place(self) -> Place:
        """Where it stood."""
        return self.topic, self.partition


class Assigned(NamedTuple):
    """These partitions are ours from here on; nothing of them has been delivered before this."""

    partitions: frozenset[int]


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

    async def work(self, items: list[InputRecord | Assigned]) -> None:
        """Work off what was taken from the inbox. An error ends the process: nothing more is committed."""
        ...

    async def tick(self) -> None:
        """Called a few times a second: what must happen although nothing arrives."""
        ...

    async def give_up(self) -> None:
        """Store what is done, then forget all partitions: they are assigned anew, here or elsewhere."""
        ...

    def committable(self) -> Mapping[Place, int]:
        """For each input partition the first offset to read again after a restart."""
        ...


class Inbox:
    """A bounded queue from which everything that waits is taken at once.

    One item costs as much to hand over as a hundred, so a consumer that falls behind takes more at a time: batches
    grow with the load, and nothing waits for a batch to fill.
    """

    def __init__(self, max_items: int = 512) -> None:
        self._max_items = max_items
        self._items: deque[InputRecord | Assigned] = deque()
        self._filled = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: InputRecord | Assigned) -> None:
        """Append; waits while the inbox is full."""
        await self._has_room.wait()
        self.extend((item,))

    def extend(self, items: Iterable[InputRecord | Assigned]) -> None:
        """Append at once, beyond the bound if need be."""
        self._items.extend(items)
        self._filled.set()
        if len(self._items) >= self._max_items:
            self._has_room.clear()

    async def filled(self) -> None:
        """Return when something waits."""
        await self._filled.wait()

    def take(self, at_most: int) -> list[InputRecord | Assigned]:
        """The oldest items; none when it is empty."""
        taken = [self._items.popleft() for _ in range(min(at_most, len(self._items)))]
        if not self._items:
            self._filled.clear()
        if len(self._items) < self._max_items:
            self._has_room.set()
        return taken

    def clear(self) -> None:
        """Drop everything."""
        self.take(len(self._items))
