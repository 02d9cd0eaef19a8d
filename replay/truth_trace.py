"""A scenario at one rate and seed, and what was served in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.truth_base import BaseKind
from replay.truth_scenarios import Rate, TruthScenario

EARLY_S = 120.0
"""When the instruments are asked how good p was so far."""
COLUMNS = (
    "displays", "clicks", "true", "p", "raw", "loss_p", "loss_raw",
    "launched", "launched_true", "launched_p", "launched_raw",
    "buy_true", "buy_p", "buy_raw", "launched_buy_true", "launched_buy_p", "launched_buy_raw",
)  # fmt: skip
"""Sums over the displays of a tick: how many, and their clicks, whenever they come; Σ true p, Σ served p, Σ σ(logit),
and the expected log loss of both under the truth; the same of launched ads; and of P(display converts).
"""


class Job(NamedTuple):
    """One scenario at one rate and seed."""

    scenario: TruthScenario
    rate: Rate
    seed: int

    @property
    def days(self) -> bool:
        """Whether it is judged by days, with conversions."""
        return self.scenario.judged_by == "days"

    @property
    def displays_per_s(self) -> float:
        """At a traffic factor of 1."""
        return self.scenario.displays_per_s or self.rate.displays_per_s

    def base(self, ctr_factor: float | None = None) -> BaseKind:
        """The base that it starts from, or one of another bias."""
        factor = self.scenario.base_ctr_factor if ctr_factor is None else ctr_factor
        return BaseKind(self.seed, self.rate.ctr, factor, self.days)

    def bases(self) -> list[BaseKind]:
        """All bases that it needs."""
        later = self.scenario.new_base
        return [self.base(), *([self.base(later.ctr_factor)] if later else [])]


class Early(NamedTuple):
    """O/E that the instruments measured early, and that of the same displays once all their clicks had come.

    standard_error : of what was measured, by the clicks that had not come yet: nobody can know them.
    """

    measured: float
    came: float
    standard_error: float


class Trace(NamedTuple):
    """What was served in each tick, and how far from the truth it was.

    starts_s : (T,) start of the ticks. sums : (T,) of each of `COLUMNS`.
    early : what the instruments measured at the end of the first `EARLY_S`.
    stopped : why the learner learned no more before the end; empty: it did not stop.
    """

    starts_s: NDArray[np.float64]
    sums: dict[str, NDArray[np.float64]]
    early: Early | None = None
    stopped: tuple[str, ...] = ()

    def over(self, start_s: float, stop_s: float) -> dict[str, float]:
        """The sums of the ticks that begin in [start_s, stop_s)."""
        first, last = np.searchsorted(self.starts_s, (start_s, stop_s))
        return {name: float(column[first:last].sum()) for name, column in self.sums.items()}
