"""The shared counters in memory, followed from the store: every request reads them."""

from __future__ import annotations

from stream.sessions.in_memory import SharedCounters
from stream.sessions.store import RedisSessionStore


class SharedCounterFeed:
    """Keeps `SharedCounters` up to date with the store: call `refresh` every ``feature_refresh_s``."""

    def __init__(self, store: RedisSessionStore) -> None:
        self.counters = SharedCounters(store.spec, store.partitions)
        self._store = store
        self._since = [0] * store.partitions

    async def refresh(self) -> int:
        """Pull what changed in every partition; returns how many states were replaced."""
        count = 0
        for partition in range(self._store.partitions):
            while True:
                since = self._since[partition]
                newest, keys, states = await self._store.pull_changes(partition, since)
                if newest < since:
                    self.counters.forget(partition)
                    self._since[partition] = 0
                    continue
                self.counters.put(partition, keys, states)
                self._since[partition] = newest
                count += len(keys)
                if newest == since or not len(keys):
                    break
        return count
