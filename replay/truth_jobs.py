"""Runs truth scenarios side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

from replay.progress import Progress
from replay.truth_base import BaseKind, TrainedBase, train_base
from replay.truth_report import Result
from replay.truth_run import run
from replay.truth_scenarios import RATES, SCENARIOS, TruthScenario
from replay.truth_trace import Job

SEEDS = (1, 2, 3)


def chosen(names: Sequence[str] | None, *, quick: bool, seeds: Sequence[int]) -> list[Job]:
    """The jobs of the named scenarios, or of all; quick: shortened, and of the first seed.

    Raises
    ------
    ValueError
        A name that is no scenario's.
    """
    unknown = [name for name in names or () if name not in SCENARIOS]
    if unknown:
        raise ValueError(f"--scenario {unknown[0]} is none of {', '.join(SCENARIOS)}. Name one of them.")
    picked: list[TruthScenario] = []
    for name in names or SCENARIOS:
        scenario = SCENARIOS[name]
        shortened = scenario.shortened() if quick else scenario
        if shortened is not None:
            picked.append(shortened)
        elif names:  # asked for by name: as it is
            picked.append(scenario)
    return [Job(one, rate, seed) for one in picked for rate in RATES for seed in (seeds[:1] if quick else seeds)]


def run_jobs(jobs: Sequence[Job], processes: int, progress: Progress) -> list[Result]:
    """Train the bases, then run the jobs, the longest first; the results in the order of the jobs."""
    with _pool(processes) as pool:
        bases = _trained(pool, jobs, progress)
        longest_first = sorted(range(len(jobs)), key=lambda number: -expected_displays(jobs[number]))
        running = {
            pool.submit(_finished, jobs[number], {kind: bases[kind] for kind in jobs[number].bases()}): number
            for number in longest_first
        }
        found: dict[int, Result] = {}
        with progress.counting("displays", round(sum(map(expected_displays, jobs)))) as advance:
            for ended in as_completed(running):
                number = running[ended]
                found[number] = ended.result()
                advance(round(found[number].displays))
    return [found[number] for number in range(len(jobs))]


def _trained(pool: ProcessPoolExecutor, jobs: Sequence[Job], progress: Progress) -> dict[BaseKind, TrainedBase]:
    """All bases of the jobs, each once; those of rare clicks, which take the longest, first."""
    kinds = sorted({kind for job in jobs for kind in job.bases()}, key=lambda kind: kind.ctr * kind.ctr_factor)
    training = {pool.submit(train_base, kind): kind for kind in kinds}
    with progress.counting("bases", len(kinds)) as advance:
        for done in as_completed(training):
            done.result()
            advance(1)
    return {kind: done.result() for done, kind in training.items()}


def expected_displays(job: Job) -> float:
    """About how many displays a job serves."""
    scenario = job.scenario
    minutes = [scenario.minutes * (step + 0.5) / 100 for step in range(100)]
    mean = sum(map(scenario.traffic_at, minutes)) / len(minutes)
    return job.displays_per_s * scenario.minutes * 60 * mean


def _finished(job: Job, bases: Mapping[BaseKind, TrainedBase]) -> Result:
    began = time.perf_counter()
    trace = run(job, bases)
    return Result.of(job, trace, time.perf_counter() - began)


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes: a fork of one with torch's threads may hang."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
