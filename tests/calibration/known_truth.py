"""Displays and clicks with a known truth, fed to a calibration second by second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from calibration.delay_prior import CONVERSION_PRIOR
from calibration.head import CONVERSION_PACE, HeadCalibration, HeadRows
from calibration.instruments import figures
from calibration.logistic import sigmoid
from calibration.slices import Slice, SlicePlan

START_MS = 1_700_000_000_000
PLAN = SlicePlan((Slice("placement", 0),))
Delays = Callable[[np.random.Generator, int], NDArray[np.float64]]


def exponential(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Clicks 7 s after their display."""
    return random.exponential(7_000.0, n)


def log_normal(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Clicks 6 s after their display at the median, sigma 1."""
    return 6_000.0 * np.exp(random.normal(0.0, 1.0, n))


class Displays(NamedTuple):
    """N displays and what becomes of them."""

    ts_ms: NDArray[np.int64]
    placement: NDArray[np.uint64]
    logit: NDArray[np.float32]  # the model's
    true: NDArray[np.float64]  # log-odds
    clicked: NDArray[np.bool_]
    delay_ms: NDArray[np.int64]

    def paths(self, plan: SlicePlan, at: NDArray[np.intp]) -> NDArray[np.int64]:
        """Their paths; all alike where the plan is another one."""
        if plan != PLAN:
            return np.zeros(len(at), np.int64)
        return plan.paths(self.placement[at, None], np.zeros((len(at), 0), np.float32))


Truth = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint64]], NDArray[np.float64]]
"""True log-odds of displays at times in s, with logits and placements."""


def right(_s: NDArray[np.float64], logit: NDArray[np.float64], _placement: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The model says the truth."""
    return logit


def displays(
    rates: Sequence[float],
    ctr: float,
    *,
    truth: Truth = right,
    delays: Delays = exponential,
    seed: int = 0,
    spread: float = 0.7,
) -> Displays:
    """Displays at ``rates`` a second, whose logits scatter around the click rate."""
    random = np.random.default_rng(seed)
    counts = random.poisson(np.asarray(rates, np.float64))
    ts_ms = np.sort(1000 * np.repeat(np.arange(len(counts)), counts) + random.integers(0, 1000, counts.sum()))
    n = len(ts_ms)
    mean = np.log(ctr / (1 - ctr)) - spread**2 / 2
    logit = (mean + random.normal(0, spread, n)).astype(np.float32)
    placement = random.integers(1, 5, n).astype(np.uint64)
    true = truth(ts_ms / 1000.0, logit.astype(np.float64), placement)
    clicked = random.random(n) < sigmoid(true)
    return Displays(ts_ms, placement, logit, true, clicked, delays(random, n).astype(np.int64))


class Teller:
    """Tells displays, and clicks as they come, to a calibration."""

    def __init__(self, all_displays: Displays, head: HeadCalibration | None = None) -> None:
        self.head = head or HeadCalibration(PLAN, CalibratorConfig())
        self.all = all_displays
        self.p = sigmoid(all_displays.logit).astype(np.float32)
        known_ms = all_displays.ts_ms + all_displays.delay_ms
        clicked = np.flatnonzero(all_displays.clicked)
        self._clicks = clicked[np.argsort(known_ms[clicked], kind="stable")]
        self._known_ms = known_ms[self._clicks]
        self.now_ms = 0

    def until(self, s: float, step_ms: int = 1_000) -> HeadCalibration:
        """Everything up to a time."""
        while self.now_ms < s * 1000:
            self.second(step_ms)
        return self.head

    def second(self, step_ms: int = 1_000) -> NDArray[np.intp]:
        """A step; returns the displays in it, whose served p may be set before their clicks come."""
        end_ms = self.now_ms + step_ms
        shown = np.arange(*np.searchsorted(self.all.ts_ms, [self.now_ms, end_ms]))
        came = self._clicks[slice(*np.searchsorted(self._known_ms, [self.now_ms, end_ms]))]
        self.head.expose(self._rows(shown))
        self.head.happen(self._rows(came), self.all.delay_ms[came])
        self.head.advance(end_ms)
        self.now_ms = end_ms
        return shown

    def _rows(self, at: NDArray[np.intp]) -> HeadRows:
        paths = self.all.paths(self.head.plan, at)
        return HeadRows(self.all.ts_ms[at], paths, self.all.logit[at], self.p[at])


@cache
def conversions(stretch: float = 1.0, hours: int = 30) -> tuple[HeadCalibration, Mapping[int, float]]:
    """A conversion head after 4,000 clicks an hour; 10 % convert, in two hours at the median; early O/E by hour.

    stretch : how much too far apart the model's log-odds lie.
    """
    random, config = np.random.default_rng(5), CalibratorConfig()
    head = HeadCalibration(SlicePlan(), config.of_conversions(), CONVERSION_PRIOR, CONVERSION_PACE)
    clicks = 4_000 * hours
    ts_ms = START_MS + np.sort(random.integers(0, hours * 3_600_000, clicks))
    true = random.normal(-2.3, 0.5, clicks)
    logit = (-2.3 + stretch * (true + 2.3)).astype(np.float32)
    delay_ms = (7_200_000.0 * np.exp(random.normal(0, 1.5, clicks))).astype(np.int64) + 1
    converts = np.flatnonzero((random.random(clicks) < sigmoid(true)) & (delay_ms < 30 * 86_400_000))
    served = HeadRows(ts_ms, np.zeros(clicks, np.int64), logit, sigmoid(logit).astype(np.float32))
    comes, early = ts_ms + delay_ms, {}
    for minute in range(0, hours * 60, 5):
        since, until = (START_MS + at * 60_000 for at in (minute, minute + 5))
        shown = np.flatnonzero((ts_ms >= since) & (ts_ms < until))
        now = converts[(comes[converts] >= since) & (comes[converts] < until)]
        head.expose(served.take(shown))
        head.happen(served.take(now), delay_ms[now])
        head.advance(until)
        if (minute + 5) % 360 == 0:
            parts, window_s = [(head.instruments, head.law)], config.conversion_window_s
            measured = figures(parts, head.plan, click_window_s=window_s, windows_s=[86_400])
            early[(minute + 5) // 60] = measured[0].observed_over_expected
    return head, early
