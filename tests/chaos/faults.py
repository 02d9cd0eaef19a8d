"""What hits the cluster: seeded, dealt like cards, at moments of its own, often while the last one is still felt."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from tests.apache_kafka import ApacheKafka
from tests.chaos.cluster import SESSION_TIMEOUT_S, Cluster
from tests.chaos.program import Program
from tests.chaos.progress import say

_AT_ONCE = 0.5  # of the pauses: the next fault comes before the last one is healed
_SHORT_PAUSE_S = (1.0, 3.0)
_LONG_PAUSE_S = (1.0, 5.0)  # after all works again


class Hit(NamedTuple):
    """A fault on its way: what is said of it, and what ends it."""

    described: str
    heal: Coroutine[Any, Any, None] | None = None


class Kind(NamedTuple):
    """A kind of fault. None of the same target comes before it is healed; killed programs are started anyway."""

    name: str
    cards: int  # in the deck
    target: str
    strike: Callable[[Cluster, random.Random], Awaitable[Hit]]
    kafka_only: bool = False


async def _kill_worker(cluster: Cluster, rng: random.Random) -> Hit:
    worker = rng.choice(cluster.workers)
    worker.kill()
    return Hit(f"{worker.name} killed")


async def _kill_serving(cluster: Cluster, rng: random.Random) -> Hit:
    cluster.serving.kill()
    return Hit("serving killed")


async def _pause_worker(cluster: Cluster, rng: random.Random) -> Hit:
    worker, seconds = rng.choice(cluster.workers), rng.uniform(0.5, 2.0)
    return Hit(f"{worker.name} paused for {seconds:.1f} s", _resume(worker, worker.pause(), seconds))


async def _make_zombie(cluster: Cluster, rng: random.Random) -> Hit:
    """Longer than its session: another worker takes over, then this one goes on as if nothing had been."""
    worker, seconds = rng.choice(cluster.workers), SESSION_TIMEOUT_S + rng.uniform(3.0, 5.0)
    return Hit(
        f"{worker.name} paused beyond its session, for {seconds:.1f} s", _resume(worker, worker.pause(), seconds)
    )


async def _resume(worker: Program, paused: asyncio.subprocess.Process | None, seconds: float) -> None:
    await asyncio.sleep(seconds)
    worker.resume(paused)


async def _kill_redis(cluster: Cluster, rng: random.Random) -> Hit:
    lost_s, away_s = rng.choice((0.0, rng.uniform(0.0, 1.0))), rng.uniform(0.2, 2.0)
    await cluster.redis.kill(lost_s)

    async def restart() -> None:
        await asyncio.sleep(away_s)
        await cluster.redis.start()

    return Hit(f"Redis killed for {away_s:.1f} s, its last {lost_s:.1f} s lost", restart())


async def _cut(cluster: Cluster, rng: random.Random) -> Hit:
    seconds = rng.uniform(0.3, 3.0)
    return Hit(f"way to the broker cut for {seconds:.1f} s", cluster.proxy.cut(seconds))


async def _kill_broker(cluster: Cluster, rng: random.Random) -> Hit:
    broker, away_s = cluster.broker, rng.uniform(0.0, 1.0)
    assert isinstance(broker, ApacheKafka)
    await broker.kill()

    async def restart() -> None:
        await asyncio.sleep(away_s)
        await broker.start()

    return Hit("broker killed", restart())


KINDS = (
    Kind("worker killed", 5, "a program", _kill_worker),
    Kind("serving killed", 2, "a program", _kill_serving),
    Kind("worker paused", 2, "a paused worker", _pause_worker),
    Kind("worker paused beyond its session", 3, "a paused worker", _make_zombie, kafka_only=True),
    Kind("Redis killed", 3, "Redis", _kill_redis),
    Kind("way to the broker cut", 3, "proxy", _cut),
    Kind("broker killed", 2, "broker", _kill_broker, kafka_only=True),
)


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
        kinds = [kind for kind in KINDS if cluster.is_kafka or not kind.kafka_only]
        self._deck = Deck([kind for kind in kinds if not only or kind.name in only], self._rng)
        self._healing: dict[str, asyncio.Task[None]] = {}  # by target

    async def unleash(self, times: int) -> None:
        """Hit, and pause, and hit; returns once everything works again. Raises what a restart raises."""
        try:
            for number in range(1, times + 1):
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
