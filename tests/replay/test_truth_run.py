"""The truth scenarios on the product's cores: what is learned as it comes holds the bounds, what waits does not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from learners.examples.kinds import CLICK, EXPOSURE
from replay.truth_base import BaseKind, TrainedBase, train_base
from replay.truth_bounds import Check, checks
from replay.truth_run import run
from replay.truth_scenarios import RATES, SCENARIOS, TruthScenario
from replay.truth_trace import COLUMNS, Job, Trace
from stream.records.examples import ExampleRows
from tests.replay.settled import Settled

SLOW = RATES[1]  # 50 displays a second at 6.5 %


def job(name: str, minutes: float) -> Job:
    """The first minutes of a scenario."""
    return Job(replace(SCENARIOS[name], minutes=minutes), SLOW, 1)


@cache
def bases(name: str) -> dict[BaseKind, TrainedBase]:
    """The bases of a scenario, trained once."""
    return {kind: train_base(kind) for kind in job(name, 1).bases()}


def missed(of: Job, trace: Trace) -> list[Check]:
    """What does not hold."""
    return [check for check in checks(of, trace) if not check.holds]


class Recorder:
    """Learns what the join gives, and keeps it with its watermarks."""

    def __init__(self) -> None:
        self.seen: list[tuple[ExampleRows | None, int]] = []

    def __call__(self, rows: ExampleRows | None, watermark_ms: int) -> ExampleRows | None:
        """Keep them, and pass them on."""
        self.seen.append((rows, watermark_ms))
        return rows

    def count(self, kind: int) -> np.ndarray:
        """Examples of a kind by tick."""
        return np.array([0 if rows is None else np.count_nonzero(rows.kind == kind) for rows, _ in self.seen])


def test_what_is_learned_as_it_comes_holds_the_bounds() -> None:
    """Four minutes of steady traffic: no minute is off, raw or calibrated."""
    of = job("steady", 4)
    trace = run(of, bases("steady"))
    assert [str(check) for check in missed(of, trace)] == []
    assert trace.sums["displays"].sum() == pytest.approx(4 * 60 * 50, rel=0.05)


def test_what_waits_for_its_label_misses_them() -> None:
    """The same four minutes with non-clicks that wait for ten minutes: p runs away, and every minute is red."""
    of = job("steady", 4)
    red = missed(of, run(of, bases("steady"), relabel=Settled()))
    assert {check.span for check in red if check.of == "a minute" and check.scores == "raw"} == {(2, 3), (3, 4)}
    assert all(check.value < 0.7 for check in red if check.of == "a minute")


def test_a_window_of_a_minute_misses_them_too() -> None:
    """A short window is no way out: the first two judged minutes of a start are red."""
    of = job("first_deployment", 4)
    red = missed(of, run(of, bases("first_deployment"), relabel=Settled(window_s=60.0)))
    assert ("a minute", "raw") in {(check.of, check.scores) for check in red}


def test_the_same_job_gives_the_same_bits() -> None:
    """Two runs serve the same sums to the bit."""
    of = job("launch_large", 1)
    first, second = run(of, bases("launch_large")), run(of, bases("launch_large"))
    assert all(np.array_equal(first.sums[name], second.sums[name]) for name in COLUMNS)


def test_every_display_is_an_example_and_every_click_that_came() -> None:
    """The join loses nothing of the world: as many exposures and clicks as were shown, but for the last seconds."""
    of, recorder = job("steady", 3), Recorder()
    trace = run(of, bases("steady"), relabel=recorder)
    assert recorder.count(EXPOSURE).sum() == pytest.approx(trace.sums["displays"].sum(), abs=12 * 50)
    assert recorder.count(CLICK).sum() == pytest.approx(trace.sums["clicks"].sum(), rel=0.15)


def test_clicks_that_lag_hold_exposures_back() -> None:
    """Five minutes into a growing lag the join has told exposures only as far as clicks have come."""
    of, recorder = job("lagging_clicks", 8), Recorder()
    run(of, bases("lagging_clicks"), relabel=recorder)
    exposed_s = recorder.count(EXPOSURE).cumsum()[-1] / SLOW.displays_per_s
    assert exposed_s < 250  # of 480 seconds; the clicks have come to 230


def test_clicks_under_way_at_the_start_come_but_for_a_first_deployment() -> None:
    """In the first three seconds of a running market clicks come of displays before it; of a first deployment none."""
    counts = []
    for name in ("steady", "first_deployment"):
        recorder = Recorder()
        run(job(name, 0.2), bases(name), relabel=recorder)
        first = [rows for rows, _ in recorder.seen if rows is not None]
        known = np.concatenate([rows.ts_ms[rows.kind == CLICK] for rows in first])
        counts.append(int(np.count_nonzero(known < min(rows.ts_ms[rows.kind == EXPOSURE].min() for rows in first))))
    assert counts[0] > 5
    assert counts[1] == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs(name: str) -> None:
    """The first moments of each, at the low rate: it serves, and what it sums is finite and not negative."""
    scenario: TruthScenario = SCENARIOS[name]
    of = job(name, 30 * scenario.tick_s / 60)
    trace = run(of, bases(name))
    assert trace.sums["displays"].sum() > 0
    for column in COLUMNS:
        assert np.isfinite(trace.sums[column]).all(), column
        assert column.startswith("loss") or (trace.sums[column] >= 0).all(), column
