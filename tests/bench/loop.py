"""Catching up: what waited while no worker was there, worked off by real workers while serving answers.

Over Apache Kafka and Redis, on all cores of the machine, which broker, Redis, serving and the users share with the
workers.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio

from learners.deepfm.model import DeepFM
from learners.snapshots.snapshot import Snapshot, write_snapshot
from stream.embedded.redis import EmbeddedRedis
from stream.kafka.broker import find_broker
from stream.servers.settings import StreamSettings
from stream.sessions.store import RedisSessionStore
from tests.apache_kafka import ApacheKafka
from tests.bench.harness import Bound, Measure, progress
from tests.bench.join_peers import create_topics
from tests.bench.loop_log import LoopLog, loop_log
from tests.bench.loop_market import DISPLAYS_PER_S, SPEC, STRETCH_S, LoopMarket
from tests.bench.loop_users import Users
from tests.bench.loop_workers import worked_off, workers
from tests.e2e.programs import serving
from tests.stream.pipeline import front

PARTITIONS = 4
AGENTS = ("join", "sessions", "learn", "calibrate")
TWO_PROCESSES = (("join", "sessions"), ("learn", "calibrate"))
AFTER_S = 60.0
_PER_STRETCH = DISPLAYS_PER_S * STRETCH_S


def measures(*, quick: bool = False) -> list[Measure]:
    """About six minutes, ``quick`` two."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        raise RuntimeError(
            "KAFKA_HOME is not set, and without transactions a worker is not the one that its users run: nothing was "
            "measured. Point it at an unpacked Apache Kafka."
        )
    away = Away.made(displays=200_000 if quick else 1_200_000, base_displays=100_000 if quick else 400_000)
    return asyncio.run(_measured(away, Path(home)))


async def _measured(away: Away, home: Path) -> list[Measure]:
    async with ApacheKafka(home, heap_mb=1024) as kafka, EmbeddedRedis() as store:
        by_agent = await _by_agent(away, kafka.bootstrap, store.url)
        caught = await _caught_up(away, kafka.bootstrap, store.url)
    return [
        *(Measure(name=f"cores for {agent}, µs an impression", ours=us) for agent, us in by_agent.items()),
        Measure(
            name="catching up in two processes while serving answers, impressions/s",
            ours=caught.per_second,
            target=Bound("ours", least=60_000),
        ),
        Measure(name="their cores, µs an impression", ours=caught.core_us),
        *(
            Measure(name=f"|O/E - 1| of what is served {when}", ours=abs(found - 1), target=Bound("ours", most=most))
            for when, found, most in (
                ("meanwhile", caught.meanwhile, 0.10),
                ("in the minute after", caught.after, 0.10),
            )
        ),
        Measure(name="answers that failed", ours=caught.failed, target=Bound("ours", most=0)),
    ]


@dataclass(frozen=True, slots=True)
class Away:
    """What was there when the workers went: a base, the sessions, and the log of the time after."""

    base: DeepFM
    market: LoopMarket
    log: LoopLog

    @classmethod
    def made(cls, *, displays: int, base_displays: int) -> Away:
        """A log that ends now."""
        market = LoopMarket()
        stretches, before = round(displays / _PER_STRETCH), round(base_displays / _PER_STRETCH)
        start_ms = int(time.time() * 1000) - round(stretches * STRETCH_S * 1000)
        began = time.monotonic()
        base = market.learn_base(start_ms, before)
        export = market.store.export()
        progress(f"base of {base_displays:,} displays: {time.monotonic() - began:.0f} s")
        log = loop_log(market, start_ms, stretches, PARTITIONS)
        market.store.restore(export)
        progress(f"log: {log.impressions:,} displays, {len(log.records):,} records, {time.monotonic() - began:.0f} s")
        return cls(base, market, log)


async def prepared(away: Away, bootstrap: str, redis_url: str, prefix: str, folder: Path) -> dict[str, str]:
    """The environment of workers on topics that hold the log, a seeded Redis and the base."""
    settings = _settings(bootstrap, redis_url, prefix)
    await create_topics(bootstrap, prefix, PARTITIONS)
    await away.log.send(await find_broker(settings))
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.flushall()
    await RedisSessionStore(client, SPEC, PARTITIONS, timeout_s=60).seed(away.market.store.export())
    await client.aclose()
    write_snapshot(
        str(folder),
        Snapshot(
            version=1, created_from="base", watermark_ms=0, newest_event_ms=0,
            shape=away.base.shape, config=away.base.config, state=away.base.state(),
        ),
    )  # fmt: skip
    return {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "REDIS_URL": redis_url,
        "MILLSTREAM_PARTITIONS": str(PARTITIONS),
        "MILLSTREAM_TOPIC_PREFIX": prefix,
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """How fast it went, and what was served."""

    per_second: float  # impressions
    core_us: float  # of the workers, an impression
    meanwhile: float  # true p over served p
    after: float
    failed: int


async def _by_agent(away: Away, bootstrap: str, redis_url: str) -> dict[str, float]:
    """Core time of a process for each agent, µs an impression."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = await prepared(away, bootstrap, redis_url, "agents.", folder)
        async with workers(environment, folder, [[agent] for agent in AGENTS]) as running:
            seconds, used = await worked_off(running, away.log.of_agents())
    progress(f"a process each: {away.log.impressions / seconds:,.0f} impressions/s")
    return {agent: 1e6 * cpu_s / away.log.impressions for agent, cpu_s in zip(AGENTS, used, strict=True)}


async def _caught_up(away: Away, bootstrap: str, redis_url: str) -> CaughtUp:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = await prepared(away, bootstrap, redis_url, "two.", folder)
        http = await stack.enter_async_context(
            serving(environment, folder, folder / "serving.log", spec=SPEC.name, clock="wall")
        )
        kafka = await stack.enter_async_context(front(_settings(bootstrap, redis_url, "two.")))
        users = Users(away.market, http, kafka)
        async with users.at_work(), workers(environment, folder, TWO_PROCESSES) as running:
            seconds, used = await worked_off(running, away.log.of_agents())
            done_s = time.monotonic()
            await asyncio.sleep(AFTER_S)
            meanwhile, after = (
                users.observed_over_expected(*span) for span in ((done_s - seconds, done_s), (done_s, time.monotonic()))
            )
        progress(f"two processes: {seconds:.1f} s, served {users.latencies()}, O/E {meanwhile:.3f}, {after:.3f}")
    rows = away.log.impressions
    return CaughtUp(rows / seconds, 1e6 * sum(used) / rows, meanwhile, after, users.failed)


def _settings(bootstrap: str, redis_url: str, prefix: str) -> StreamSettings:
    return StreamSettings(
        kafka_bootstrap_servers=bootstrap, redis_url=redis_url, partitions=PARTITIONS, topic_prefix=prefix
    )
