"""The kinds of fault: what each strikes, and what heals it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple

from tests.chaos.cluster import SESSION_TIMEOUT_S, Cluster
from tests.chaos.kafka_cluster import BROKER_SESSION_S, KafkaCluster, KafkaNode
from tests.chaos.program import Program

Setup = Literal["embedded", "kafka", "cluster"]
ANYWHERE: AbstractSet[Setup] = frozenset(("embedded", "kafka", "cluster"))
_KAFKA: AbstractSet[Setup] = frozenset(("kafka", "cluster"))
_ONE_KAFKA: AbstractSet[Setup] = frozenset(("kafka",))
_CLUSTER: AbstractSet[Setup] = frozenset(("cluster",))

_SLOW_S = (15.0, 20.0)
_DELAY_S = 2.0
_SPARE_FILES = (0, 1, 4, 12)
_SHORT_OF_FILES_S = (6.0, 15.0)


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
    setups: AbstractSet[Setup] = ANYWHERE


def setup_of(broker: str, brokers: int) -> Setup:
    """Which kinds can come over so many brokers of this kind."""
    return "embedded" if broker == "embedded" else "kafka" if brokers == 1 else "cluster"


# ----------------------------------------------------------------------------------------------------------- programs


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


async def _starve_of_files(cluster: Cluster, rng: random.Random) -> Hit:
    """`ulimit -n` at what it has open, or a few more; what it opens or closes then is up to the other faults."""
    worker, seconds = rng.choice(cluster.workers), rng.uniform(*_SHORT_OF_FILES_S)
    most = worker.limit_files(rng.choice(_SPARE_FILES))

    async def give_back() -> None:
        await asyncio.sleep(seconds)
        worker.unlimit_files()

    return Hit(f"{worker.name} may have no more than {most} files open for {seconds:.1f} s", give_back())


# -------------------------------------------------------------------------------------------------------------- Redis


async def _kill_redis(cluster: Cluster, rng: random.Random) -> Hit:
    lost_s, away_s = rng.choice((0.0, rng.uniform(0.0, 1.0))), rng.uniform(0.2, 2.0)
    await cluster.redis.kill(lost_s)

    async def restart() -> None:
        await asyncio.sleep(away_s)
        await cluster.redis.start()

    return Hit(f"Redis killed for {away_s:.1f} s, its last {lost_s:.1f} s lost", restart())


async def _slow_redis(cluster: Cluster, rng: random.Random) -> Hit:
    seconds = rng.uniform(*_SLOW_S)
    heal = cluster.redis_proxy.slow(seconds, _DELAY_S)
    return Hit(f"Redis answers {_DELAY_S:g} s late for {seconds:.1f} s", heal)


# ------------------------------------------------------------------------------------------------ the way to a broker


async def _cut(cluster: Cluster, rng: random.Random) -> Hit:
    seconds = rng.uniform(0.3, 3.0)
    return Hit(f"way to the broker cut for {seconds:.1f} s", _cut_all(cluster, seconds))


async def _cut_all(cluster: Cluster, seconds: float) -> None:
    await asyncio.gather(*(proxy.cut(seconds) for proxy in cluster.proxies))


async def _slow_broker(cluster: Cluster, rng: random.Random) -> Hit:
    at, seconds = rng.randrange(len(cluster.proxies)), rng.uniform(*_SLOW_S)
    heal = cluster.proxies[at].slow(seconds, _DELAY_S)
    return Hit(f"broker {at + 1} answers {_DELAY_S:g} s late for {seconds:.1f} s", heal)


# ------------------------------------------------------------------------------------------------------------ brokers


async def _kill_broker(cluster: Cluster, rng: random.Random) -> Hit:
    (node,) = _kafka(cluster).nodes
    return await _kill_node(cluster, node, rng, "broker killed")


async def _kill_leader(cluster: Cluster, rng: random.Random) -> Hit:
    """Of any topic, those of offsets and transactions too; it may lead the controllers besides."""
    kafka = _kafka(cluster)
    led = rng.choice([one for one in await kafka.partitions() if one.leader > 0])
    what = f"broker {led.leader} killed, which leads {led.topic}[{led.partition}]"
    return await _kill_node(cluster, kafka.node(led.leader), rng, what)


async def _kill_node(cluster: Cluster, node: KafkaNode, rng: random.Random, described: str) -> Hit:
    away_s = rng.uniform(0.0, 1.0)
    await node.server.kill()

    async def restart() -> None:
        await asyncio.sleep(away_s)
        await node.server.start()
        await _kafka(cluster).until_in_sync()

    return Hit(described, restart())


async def _restart_broker(cluster: Cluster, rng: random.Random) -> Hit:
    """SIGTERM: it hands over what it leads first."""
    kafka = _kafka(cluster)
    node = rng.choice(kafka.nodes)

    async def restart() -> None:
        await node.server.stop()
        await node.server.start()
        await kafka.until_in_sync()

    return Hit(f"broker {node.number} restarted", restart())


async def _isolate_broker(cluster: Cluster, rng: random.Random) -> Hit:
    """Neither clients nor followers reach it, but the controllers do: it leads on, with nobody in sync."""
    kafka = _kafka(cluster)
    node, seconds = rng.choice(kafka.nodes), rng.uniform(2.0, 8.0)

    async def reconnect() -> None:
        await asyncio.gather(node.clients.cut(seconds), node.peers.cut(seconds))
        await kafka.until_in_sync()

    return Hit(f"broker {node.number} cut off from clients and followers for {seconds:.1f} s", reconnect())


async def _pause_broker(cluster: Cluster, rng: random.Random) -> Hit:
    """Mostly beyond its session: another one leads, then this one goes on as if nothing had been."""
    kafka = _kafka(cluster)
    node, seconds = rng.choice(kafka.nodes), BROKER_SESSION_S + rng.uniform(-1.0, 4.0)
    node.pause()

    async def resume() -> None:
        await asyncio.sleep(seconds)
        node.resume()
        await kafka.until_in_sync()

    return Hit(f"broker {node.number} paused for {seconds:.1f} s", resume())


def _kafka(cluster: Cluster) -> KafkaCluster:
    assert cluster.kafka is not None
    return cluster.kafka


KINDS = (
    Kind("worker killed", 5, "a program", _kill_worker),
    Kind("serving killed", 2, "a program", _kill_serving),
    Kind("worker paused", 2, "a paused worker", _pause_worker),
    Kind("worker paused beyond its session", 3, "a paused worker", _make_zombie, _KAFKA),
    Kind("worker short of files", 1, "open files", _starve_of_files),
    Kind("Redis killed", 3, "Redis", _kill_redis),
    Kind("Redis slowed", 1, "the way to Redis", _slow_redis),
    Kind("way to the broker cut", 3, "the way to the broker", _cut),
    Kind("broker slowed", 1, "the way to the broker", _slow_broker),
    Kind("broker killed", 2, "broker", _kill_broker, _ONE_KAFKA),
    Kind("leader killed", 3, "broker", _kill_leader, _CLUSTER),
    Kind("broker restarted", 2, "broker", _restart_broker, _CLUSTER),
    Kind("broker cut off", 2, "broker", _isolate_broker, _CLUSTER),
    Kind("broker paused", 2, "broker", _pause_broker, _CLUSTER),
)


def kinds_of(setup: Setup) -> list[Kind]:
    """Those that can come there."""
    return [kind for kind in KINDS if setup in kind.setups]
