"""What happens in the world with a known truth: scenarios as data. Times are minutes of simulated time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from replay.market_laws import INSTALLS, PURCHASES, DelayLaw

Points = tuple[tuple[float, float], ...]
"""(minute, value), ascending: linear between them; of two at one minute the later holds from there on."""
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Rate:
    """Traffic and click rate of a market."""

    displays_per_s: float
    ctr: float

    def __str__(self) -> str:
        return f"{self.displays_per_s:,.0f}/s at {self.ctr:.1%}"


RATES = (Rate(1_000.0, 0.01), Rate(50.0, 0.065))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Ads that start at ``minute`` and take ``share`` of the displays at once."""

    minute: float
    ads: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBase:
    """A base trained at ``ctr_factor`` times the true rate, taken up at ``minute``.

    It misses what came since ``split_minute``, which is replayed to it before it serves.
    """

    minute: float
    split_minute: float
    ctr_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthScenario:
    """One course of events. The rates come from elsewhere: `traffic` and `ctr` are factors on them.

    minutes : how long it takes. quick : the same, shortened, for ``--quick``; None: left out there.
    fresh : nobody was served before it, so that no clicks are under way at its start.
    base_ctr_factor : at how many times the true rate the first base was trained.
    clicks_lag_s : how far the clicks topic is behind; negative values mean silent.
    candidates : ads of a request, of which the highest p x bid are shown; 0: as many as slots, as they come.
    follow_minutes : after a change of the click rate, for which no bound holds.
    judged_by : minutes, or days with conversions. displays_per_s : instead of the rate's, where days are simulated.
    tick_s : what is served, joined and learned at once.
    """

    name: str
    says: str
    minutes: float
    quick: float | None = None
    traffic: Points = ((0, 1.0),)
    ctr: Points = ((0, 1.0),)
    fresh: bool = False
    base_ctr_factor: float = 1.0
    clicks_lag_s: Points = ((0, 0.0),)
    late_share: float = 0.0
    launch: Launch | None = None
    new_base: NewBase | None = None
    candidates: int = 0
    follow_minutes: float = 3.0
    judged_by: Literal["minutes", "days"] = "minutes"
    displays_per_s: float | None = None
    tick_s: float = 1.0
    conversion_delay: DelayLaw = INSTALLS

    def traffic_at(self, minute: float) -> float:
        """Displays as a share of the rate."""
        return _at(self.traffic, minute)

    def ctr_at(self, minute: float) -> float:
        """Click rate as a share of the rate's."""
        return _at(self.ctr, minute)

    def clicks_lag_at(self, minute: float) -> float:
        """Seconds that the clicks topic is behind, negative: silent."""
        return _at(self.clicks_lag_s, minute)

    @property
    def ctr_changes(self) -> tuple[float, ...]:
        """Minutes at which the click rate jumps."""
        return tuple(at for (at, _), (before, _) in zip(self.ctr[1:], self.ctr, strict=False) if at == before)

    def shortened(self) -> TruthScenario | None:
        """The scenario of ``--quick``."""
        return None if self.quick is None else replace(self, minutes=self.quick)


def _at(points: Points, minute: float) -> float:
    minutes = [at for at, _ in points]
    after = int(np.searchsorted(minutes, minute, side="right"))
    if after in (0, len(points)):
        return points[max(after - 1, 0)][1]
    (start, low), (stop, high) = points[after - 1 : after + 1]
    return low + (high - low) * (minute - start) / (stop - start)


def _day(minutes: float) -> Points:
    """A day's rhythm in ``minutes``: from a fifth of the mean at night to 1.8 times of it."""
    at = np.linspace(0, 1, 25)
    return tuple((float(minutes * x), float(1 + 0.8 * np.sin(2 * np.pi * (x - 0.25)))) for x in at)


_DAY = 24 * 60.0

SCENARIOS = {
    one.name: one
    for one in (
        TruthScenario(name="steady", says="nothing happens", minutes=12, quick=6),
        TruthScenario(
            name="first_deployment", says="the base was trained at twice the click rate", minutes=12, quick=6,
            fresh=True, base_ctr_factor=2.0,
        ),
        TruthScenario(
            name="traffic_x2", says="traffic doubles at minute 4", minutes=12, quick=8,
            traffic=((0, 1.0), (4, 1.0), (4, 2.0)),
        ),
        TruthScenario(name="day_ramp", says="a day's rhythm in 24 minutes", minutes=24, traffic=_day(24)),
        TruthScenario(
            name="outage", says="nobody is served for 15 minutes", minutes=30, quick=24,
            traffic=((0, 1.0), (5, 1.0), (5, 0.0), (20, 0.0), (20, 1.0)),
        ),
        TruthScenario(
            name="launch_large", says="4 new ads take 20 % of the displays", minutes=24, quick=9,
            launch=Launch(minute=4, ads=4, share=0.2),
        ),
        TruthScenario(
            name="launch_small", says="200 new ads take 20 % of the displays", minutes=24,
            launch=Launch(minute=4, ads=200, share=0.2),
        ),
        TruthScenario(
            name="ctr_x2", says="the click rate doubles at minute 5", minutes=18, quick=10,
            ctr=((0, 1.0), (5, 1.0), (5, 2.0)),
        ),
        TruthScenario(
            name="late_clicks", says="20 % of the clicks come an hour late", minutes=12, quick=6, late_share=0.2,
        ),
        TruthScenario(
            name="lagging_clicks", says="the clicks topic falls 5 minutes behind, then is silent for 10", minutes=30,
            quick=25,
            clicks_lag_s=((0, 0.0), (3, 0.0), (9, 300.0), (9, -1.0), (19, -1.0), (19, 0.0)),
        ),
        TruthScenario(
            name="new_base", says="a base trained at half the click rate is taken up at minute 7", minutes=17, quick=10,
            new_base=NewBase(minute=7, split_minute=2, ctr_factor=0.5),
        ),
        TruthScenario(
            name="closed_loop", says="of 12 ads those with the highest p x bid are shown", minutes=12, quick=6,
            candidates=12,
        ),
        TruthScenario(
            name="conversions", says="conversions come within hours; a campaign starts on the second day",
            minutes=3 * _DAY, quick=2 * _DAY, judged_by="days", displays_per_s=8.0, tick_s=60.0,
            launch=Launch(minute=_DAY, ads=4, share=0.2),
        ),
        TruthScenario(
            name="late_conversions", says="half of the conversions come after a day; a campaign starts on the second",
            minutes=3 * _DAY, judged_by="days", displays_per_s=4.0, tick_s=60.0, conversion_delay=PURCHASES,
            launch=Launch(minute=_DAY, ads=4, share=0.2),
        ),
    )
}  # fmt: skip
"""Scenarios by the name that the command line takes."""
