"""What must hold in every scenario, and where it does not.

The true probabilities are known, so that O/E = Σ true p / Σ served p has no noise of clicks in it: what is left is what
the model does. Spans are minutes of the scenario.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from replay.truth_scenarios import Span
from replay.truth_trace import EARLY_S, Job, Trace

MINUTE, TEN_MINUTES, JUMP, BIASED = (0.90, 1.10), (0.97, 1.03), (0.97, 1.03), (0.95, 1.05)
LAUNCHED, LAUNCHED_20 = (0.85, 1.15), (0.93, 1.07)
DAY, CLICKS_DAY, FIRST_DAY = (0.90, 1.10), (0.97, 1.03), (0.80, 1.25)
MAP_COST = 1e-4  # in log loss
FIRST_JUDGED_MINUTE = 2.0
BACK_WITHIN_MINUTES, BACK_FROM_DISPLAYS_PER_S = 3.0, 1_000.0
EARLY_MARGIN = 0.03  # of O/E, from that of the same displays once all clicks came
EARLY_STANDARD_ERRORS = 2.5  # of the clicks that are still to come, where displays are few
LEAST_LAUNCHED_DISPLAYS = 300.0  # of an ad, so far, before it is judged
DAY_MINUTES = 24 * 60.0
_MAPS = {"calibrated": "p", "raw": "raw"}


class Check(NamedTuple):
    """One figure and its bounds. ``of`` says whose: O/E of all, of the launched ads, ...; span in minutes."""

    of: str
    scores: str  # calibrated or raw
    span: Span
    value: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the value is within; NaN is not."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        start, stop = self.span
        return (
            f"{self.of}, {self.scores}, minutes {start:g} to {stop:g}: {self.value:.6g} is not within {self.low:g} to "
            f"{self.high:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**self._asdict(), "holds": self.holds}


def checks(job: Job, trace: Trace) -> list[Check]:
    """Everything that must hold of a job, in order of time."""
    found = [*(_by_day(job, trace) if job.days else _by_minute(job, trace))]
    whole = (0.0, job.scenario.minutes)
    found += [Check(f"the learner stopped: {why}", "raw", whole, float("nan"), 0.0, 0.0) for why in trace.stopped]
    return sorted(found, key=lambda check: check.span)


def stretches(job: Job, trace: Trace) -> list[Span]:
    """Where the bounds of minutes hold: stretches of served minutes, without what follows a start or a jump.

    They are cut where a new base is taken up, so that its minutes are judged by themselves.
    """
    scenario = job.scenario
    judged = [
        minute
        for minute in range(round(scenario.minutes))
        if minute >= FIRST_JUDGED_MINUTE
        and not any(at <= minute < at + scenario.follow_minutes for at in scenario.ctr_changes)
        and trace.over(minute * 60, minute * 60 + 60)["displays"] > 0
    ]
    cuts = {scenario.new_base.minute} if scenario.new_base else set()
    found: list[Span] = []
    for minute in judged:
        if found and found[-1][1] == minute and minute not in cuts:
            found[-1] = (found[-1][0], minute + 1)
        else:
            found.append((minute, minute + 1))
    return found


def _by_minute(job: Job, trace: Trace) -> Iterator[Check]:
    yield from _of_stretches(job, trace)
    for jump in job.scenario.ctr_changes:
        if job.displays_per_s >= BACK_FROM_DISPLAYS_PER_S:
            yield from _back(trace, jump)
    if job.scenario.launch:
        yield from _launched(job, trace)
    if trace.early is not None:
        off = trace.early.measured - trace.early.came
        bound = max(EARLY_MARGIN, EARLY_STANDARD_ERRORS * trace.early.standard_error)
        yield Check("the instruments off the truth", "calibrated", (0.0, EARLY_S / 60), off, -bound, bound)
    if job.scenario.new_base:
        for minute in _cut((job.scenario.new_base.minute, job.scenario.minutes), 1.0):
            yield from _of_clicks(trace, minute, "the new base", BIASED)
    if job.scenario.candidates:
        yield from _of_clicks(trace, (FIRST_JUDGED_MINUTE, job.scenario.minutes), "what won", BIASED)


def _of_stretches(job: Job, trace: Trace) -> Iterator[Check]:
    for stretch in stretches(job, trace):
        for minute in _cut(stretch, 1.0):
            yield from _of_clicks(trace, minute, "a minute", MINUTE)
        for ten in _cut(stretch, 10.0):
            yield from _of_clicks(trace, ten, "ten minutes", TEN_MINUTES)
            sums = _sums(trace, ten)
            worse = (sums["loss_p"] - sums["loss_raw"]) / sums["displays"]
            yield Check("log loss that the map costs", "calibrated", ten, worse, float("-inf"), MAP_COST)


def _of_clicks(trace: Trace, span: Span, of: str, bounds: Span) -> Iterator[Check]:
    sums = _sums(trace, span)
    for scores, column in _MAPS.items():
        yield Check(of, scores, span, _ratio(sums["true"], sums[column]), *bounds)


def _back(trace: Trace, jump: float) -> Iterator[Check]:
    """How many minutes after a jump half a minute is first served within the bounds of ten."""
    low, high = JUMP
    halves = [jump + half / 2 for half in range(round(2 * BACK_WITHIN_MINUTES) + 8)]
    for scores, column in _MAPS.items():
        back = float("inf")
        for start in halves:
            sums = _sums(trace, (start, start + 0.5))
            if low <= _ratio(sums["true"], sums[column]) <= high:
                back = start + 0.5 - jump
                break
        span = (jump, jump + BACK_WITHIN_MINUTES)
        yield Check("minutes until it is back after the jump", scores, span, back, 0.0, BACK_WITHIN_MINUTES)


def _launched(job: Job, trace: Trace) -> Iterator[Check]:
    launch = job.scenario.launch
    assert launch is not None
    for minute in _cut((launch.minute, job.scenario.minutes), 1.0):
        so_far = _sums(trace, (launch.minute, minute[0]))["launched"] / launch.ads
        if so_far >= LEAST_LAUNCHED_DISPLAYS:
            yield from _of_launched(trace, minute, "launched ads", LAUNCHED)
    if job.scenario.minutes >= launch.minute + 20:
        late = (launch.minute + 15, launch.minute + 20)
        yield from _of_launched(trace, late, "launched ads at 20 minutes", LAUNCHED_20)


def _of_launched(trace: Trace, span: Span, of: str, bounds: Span) -> Iterator[Check]:
    sums = _sums(trace, span)
    for scores, column in _MAPS.items():
        yield Check(of, scores, span, _ratio(sums["launched_true"], sums[f"launched_{column}"]), *bounds)


def _by_day(job: Job, trace: Trace) -> Iterator[Check]:
    for day in _cut((0.0, job.scenario.minutes), DAY_MINUTES):
        sums = _sums(trace, day)
        yield from _of_clicks(trace, day, "clicks of a day", CLICKS_DAY)
        for scores, column in _MAPS.items():
            yield Check("conversions of a day", scores, day, _ratio(sums["buy_true"], sums[f"buy_{column}"]), *DAY)
    launch = job.scenario.launch
    if launch:
        first = (launch.minute, launch.minute + DAY_MINUTES)
        sums = _sums(trace, first)
        for scores, column in _MAPS.items():
            value = _ratio(sums["launched_buy_true"], sums[f"launched_buy_{column}"])
            yield Check("conversions of the new campaign", scores, first, value, *FIRST_DAY)


def _cut(span: Span, minutes: float) -> Iterator[Span]:
    """Whole pieces of a span; what is left of it is dropped."""
    start, stop = span
    for piece in range(int((stop - start) // minutes)):
        yield start + piece * minutes, start + (piece + 1) * minutes


def _sums(trace: Trace, span: Span) -> dict[str, float]:
    return trace.over(span[0] * 60, span[1] * 60)


def _ratio(observed: float, expected: float) -> float:
    return observed / expected if expected else float("nan")
