"""The world with a known truth: displays drawn in a second, and served, joined, learned and calibrated in a second."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from replay.truth_base import train_base
from replay.truth_run import run
from replay.truth_scenarios import RATES, SCENARIOS
from replay.truth_trace import Job
from replay.truth_world import World, WorldConfig
from tests.bench.harness import Bound, Measure, median, progress

DRAWN_PER_S, RUN_PER_S = 200_000.0, 10_000.0
_REQUESTS = 333  # of a second at 1,000 displays/s


def measures(*, quick: bool) -> list[Measure]:
    """Two lines, both on one core."""
    rounds, seconds, minutes = (3, 200, 1) if quick else (7, 1_000, 5)
    drawn = median(_drawn_per_s(seconds) for _ in range(rounds))
    progress(f"drawn: {drawn:,.0f} displays/s")
    served = _run_per_s(minutes)
    return [
        Measure(name="displays drawn, 1/s", ours=drawn, target=Bound("ours", least=DRAWN_PER_S)),
        Measure(name="displays through all cores, 1/s", ours=served, target=Bound("ours", least=RUN_PER_S)),
    ]


def _drawn_per_s(seconds: int) -> float:
    world = World(WorldConfig(seed=1, ctr=0.01))
    ts_ms = np.zeros(_REQUESTS, np.int64)
    began = time.perf_counter()
    for second in range(seconds):
        rng = world.rng(second)
        shown = world.requests(rng, _REQUESTS, 3)
        world.react(rng, world.click_probability(shown).ravel(), world.conversion_probability(shown).ravel())
        world.encoded(shown, 1, ts_ms)
    return seconds * _REQUESTS * 3 / (time.perf_counter() - began)


def _run_per_s(minutes: float) -> float:
    warm, measured = (Job(replace(SCENARIOS["steady"], minutes=m), RATES[0], 1) for m in (0.1, minutes))
    bases = {kind: train_base(kind) for kind in measured.bases()}
    run(warm, bases)
    began = time.perf_counter()
    trace = run(measured, bases)
    return float(trace.sums["displays"].sum()) / (time.perf_counter() - began)
