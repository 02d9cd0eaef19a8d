"""Traces whose O/E is made up, to hold bounds and reports to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from replay.truth_trace import COLUMNS, Early, Job, Trace

CTR = 0.01


def made_up(
    job: Job,
    expected: Callable[[float], float] = lambda minute: 1.0,
    raw: Callable[[float], float] = lambda minute: 1.0,
    launched: Callable[[float], float] = lambda minute: 1.0,
    conversions: Callable[[float], float] = lambda minute: 1.0,
    cost: Callable[[float], float] = lambda minute: 0.0,
) -> Trace:
    """A trace of a job whose p is so many times the true one, by the minute, and whose map costs so much log loss."""
    scenario = job.scenario
    starts_s = np.arange(round(scenario.minutes * 60 / scenario.tick_s), dtype=np.float64) * scenario.tick_s
    sums = np.zeros((len(starts_s), len(COLUMNS)))
    for tick, start_s in enumerate(starts_s.tolist()):
        minute = start_s / 60
        shown = job.displays_per_s * scenario.tick_s * scenario.traffic_at(minute)
        of_launch = 0.0
        if scenario.launch and minute >= scenario.launch.minute:
            of_launch = shown * scenario.launch.share
        true, new = shown * CTR, of_launch * CTR
        values = {
            "displays": shown, "clicks": true, "true": true, "p": true * expected(minute), "raw": true * raw(minute),
            "loss_p": shown * cost(minute), "loss_raw": 0.0,
            "launched": of_launch, "launched_true": new, "launched_p": new * launched(minute), "launched_raw": new,
            "buy_true": true * 0.1, "buy_p": true * 0.1 * conversions(minute), "buy_raw": true * 0.1,
            "launched_buy_true": new * 0.1, "launched_buy_p": new * 0.1 * conversions(minute),
            "launched_buy_raw": new * 0.1,
        }  # fmt: skip
        sums[tick] = [values[name] for name in COLUMNS]
    return Trace(starts_s, dict(zip(COLUMNS, sums.T, strict=True)), early=Early(1.0, 1.0, 0.01))
