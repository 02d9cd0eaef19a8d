"""The join: its core, a worker between topics, other libraries on the same log, session features, recovery."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from stream.embedded.broker import EmbeddedBroker
from stream.embedded.redis import EmbeddedRedis
from tests.bench.harness import Bound, Child, Measure, median, progress
from tests.bench.join_log import join_log
from tests.bench.join_peers import PEERS, joined, produce
from tests.bench.join_times import HORIZON_MS
from tests.bench.join_worker import Load, end_to_end, recovery

_PER_SECOND = 10_000.0  # of event time: clicks come up to 600,000 rows after their display


def measures(*, quick: bool = False) -> list[Measure]:
    """All of them; about ten minutes on an idle machine, ``quick`` three."""
    cores = sorted(os.sched_getaffinity(0))
    return [
        *core(cores, quick=quick),
        *asyncio.run(topics(cores, quick=quick)),
        *asyncio.run(sessions(cores, quick=quick)),
        *asyncio.run(recover(cores, quick=quick)),
    ]


def core(cores: Sequence[int], *, quick: bool) -> list[Measure]:
    """The core alone on one core, and its memory."""
    with Child("tests.bench.join_core", cores=cores[:1]) as child:
        held = child.turn("pending", rows=200_000 if quick else 1_000_000)  # first, while nothing was freed
        found = child.turn("core", impressions=200_000 if quick else 500_000, rounds=2 if quick else 5)
    progress(f"core: {found}; pending: {held}")
    if not found["right"]:
        raise RuntimeError("the core's examples are not those that must come out")
    return [
        Measure(
            name="join core, impressions/core s; a join over dictionaries",
            ours=found["alone"],
            peer=found["peer"],
            target=Bound("ours", least=1e6),
        ),
        Measure(name="the same with decoding and encoding", ours=found["whole"]),
        Measure(
            name="a pending impression beside ids and dense inputs, B",
            ours=held["counted"],
            target=Bound("ours", most=64),
        ),
        Measure(name="the same by resident memory, ids and all, B", ours=held["resident"]),
    ]


async def topics(cores: Sequence[int], *, quick: bool) -> list[Measure]:
    """A worker between topics on the embedded broker, all on two cores; the peers on the same log, each on a core."""
    rounds = 1 if quick else 3
    events = 60_000 if quick else 200_000
    batch = Load(impressions=200_000 if quick else 1_000_000, encoding="batch", runner="faust", per_second=_PER_SECOND)
    loads = {
        "faust, batches of 100": (batch, 100_000.0),
        "aiokafka, batches of 100": (Load(impressions=batch.impressions, encoding="batch", runner="aiokafka"), None),
        "faust, JSON events": (Load(impressions=events, encoding="json", runner="faust"), 10_000.0),
        "aiokafka, JSON events": (Load(impressions=events, encoding="json", runner="aiokafka"), 30_000.0),
    }
    ours: dict[str, list[float]] = {name: [] for name in loads}
    async with EmbeddedRedis() as redis:
        for turn in range(rounds):
            for name, (load, _) in loads.items():
                async with EmbeddedBroker() as broker:
                    ours[name].append(await end_to_end(broker.bootstrap, redis.url, load, f"{turn}.", cores))
    theirs = await _peers(cores, rounds, quick=quick)
    best = {encoding: max(theirs[encoding].values(), default=0.0) for encoding in ("batch", "json")}
    found = [
        Measure(
            name=f"worker, impressions/s: {name}; best peer",
            ours=median(ours[name]),
            peer=best[load.encoding] or None,
            target=None if least is None else Bound("ours", least=least),
        )
        for name, (load, least) in loads.items()
    ]
    return [
        *found,
        *(
            Measure(name=f"{peer}, impressions/s, {encoding}", ours=rate)
            for encoding, rates in theirs.items()
            for peer, rate in rates.items()
        ),
    ]


async def _peers(cores: Sequence[int], rounds: int, *, quick: bool) -> dict[str, dict[str, float]]:
    """Impressions a second of the wall clock by encoding and peer, medians."""
    found: dict[str, dict[str, list[float]]] = {"batch": {}, "json": {}}
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores[1:]) or all_cores)  # the broker, started below, inherits this
    try:
        for encoding in ("batch", "json"):
            log = join_log(30_000 if quick else 60_000, encoding, per_second=_PER_SECOND)
            for turn in range(rounds):
                for number, peer in enumerate(peer for peer in PEERS if peer.installed):
                    async with EmbeddedBroker() as broker:
                        await produce(broker.bootstrap, log, "peers.")
                        run = await joined(peer, broker.bootstrap, log, "peers.", f"out-{number}", cores[0], True)
                    progress(f"{turn + 1}/{rounds} {encoding} {run}")
                    if not run.right:
                        raise RuntimeError(f"{peer.name}: its examples are not those that must come out")
                    found[encoding].setdefault(peer.name, []).append(run.per_second)
    finally:
        os.sched_setaffinity(0, all_cores)
    return {encoding: {name: median(rates) for name, rates in by.items()} for encoding, by in found.items()}


async def sessions(cores: Sequence[int], *, quick: bool) -> list[Measure]:
    """The fold into Redis and the read of a request, Redis on the other core."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores[1:]) or all_cores)
    try:
        async with EmbeddedRedis() as redis:
            with Child("tests.bench.join_sessions", cores=cores[:1]) as child:
                folded = await asyncio.to_thread(child.turn, "fold", url=redis.url, batches=40 if quick else 120)
                read = await asyncio.to_thread(child.turn, "read", url=redis.url, reads=200 if quick else 1_000)
    finally:
        os.sched_setaffinity(0, all_cores)
    progress(f"sessions: {folded}, read: {read}")
    return [
        Measure(
            name="session features, examples/s a core into Redis",
            ours=folded["per_second"],
            target=Bound("ours", least=20_000),
        ),
        Measure(name="features of 1 user and 1000 ads, p99 ms", ours=read["p99_ms"], target=Bound("ours", most=3)),
    ]


async def recover(cores: Sequence[int], *, quick: bool) -> list[Measure]:
    """From the start of a process after SIGKILL until it holds a million pending rows again."""
    rows = 206_000 if quick else 1_030_000  # of which some are clicked, and do not wait
    load = Load(impressions=rows, encoding="batch", runner="aiokafka", per_second=rows / (HORIZON_MS / 1000))
    found: dict[int, list[float]] = {0: [], rows: []}
    async with EmbeddedRedis() as redis:
        for turn in range(1 if quick else 3):
            for exposed, seconds in found.items():
                async with EmbeddedBroker() as broker:
                    took = await recovery(broker.bootstrap, redis.url, load, f"{turn}.", cores, exposed=exposed)
                seconds.append(took)
    alone, behind = found.values()
    return [
        Measure(
            name=f"recovery after SIGKILL, {rows / 1.03:,.0f} pending rows, s",
            ours=median(alone),
            target=Bound("ours", most=10),
        ),
        Measure(name="the same with as many exposed rows, whose examples are restored", ours=median(behind)),
    ]
