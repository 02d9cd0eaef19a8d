"""What hits the cluster: seeded, dealt like cards, at moments of its own, often while the last one is still felt."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from tests.chaos.cluster import Cluster
from tests.chaos.kinds import Kind, kinds_of, setup_of
from tests.chaos.progress import say

_AT_ONCE = 0.5  # of the pauses: the next fault comes before the last one is healed
_SHORT_PAUSE_S = (1.0, 3.0)
_LONG_PAUSE_S = (1.0, 5.0)  # after all works again


class Deck:
    """Kinds dealt from a shuffled deck: all of them come up soon, each as often as it has cards."""

    def __init__(self, kinds: Sequence[Kind], rng: random.Random) -> None:
        self._kinds = kinds
        self._rng = rng
        self._cards: list[Kind] = []

    def deal(self, busy: AbstractSet[str]) -> Kind | None:
        """The next card whose target is not busy, those before it stay for later; None when all targets are."""
        if not self._cards:
            self._cards = [kind for kind in self._kinds for _ in range(kind.cards)]
            self._rng.shuffle(self._cards)
        at = next((at for at, kind in enumerate(self._cards) if kind.target not in busy), None)
        return None if at is None else self._cards.pop(at)


class Faults:
    """Hits a cluster so many times; `counts` are those of each kind.

    Parameters
    ----------
    only : names of the kinds in the deck; none: all that the broker allows.
    """

    def __init__(self, cluster: Cluster, seed: int, only: Sequence[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._cluster = cluster
        self._rng = random.Random(f"faults {seed}")
        kinds = kinds_of(setup_of(cluster.options.broker, cluster.options.brokers))
        self._deck = Deck([kind for kind in kinds if not only or kind.name in only], self._rng)
        self._healing: dict[str, asyncio.Task[None]] = {}  # by target

    async def unleash(self, times: int, within_s: float = math.inf) -> None:
        """Hit, and pause, and hit, no more after ``within_s``; returns once everything works again.

        Raises what a restart raises.
        """
        deadline_s = time.monotonic() + within_s
        try:
            for number in range(1, times + 1):
                if time.monotonic() > deadline_s:
                    break
                await self._hit(f"{number}/{times}")
                if self._rng.random() < _AT_ONCE:
                    await asyncio.sleep(self._rng.uniform(*_SHORT_PAUSE_S))
                else:
                    await self._until_healed()
                    await asyncio.sleep(self._rng.uniform(*_LONG_PAUSE_S))
            await self._until_healed()
        finally:
            for task in self._healing.values():
                task.cancel()

    async def _hit(self, which: str) -> None:
        for target, task in [*self._healing.items()]:
            if task.done():
                self._healing.pop(target).result()
        while (kind := self._deck.deal(self._healing.keys())) is None:
            await self._until_healed()
        hit = await kind.strike(self._cluster, self._rng)
        say(f"{which} {hit.described}")
        self.counts[kind.name] += 1
        if hit.heal is not None:
            self._healing[kind.target] = asyncio.create_task(hit.heal)

    async def _until_healed(self) -> None:
        await asyncio.gather(*self._healing.values())
        self._healing.clear()
        await self._cluster.until_ready()
