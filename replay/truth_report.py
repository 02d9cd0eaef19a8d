"""What the truth scenarios found, as a table and as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from replay.truth_bounds import DAY_MINUTES, Check, checks
from replay.truth_trace import Job, Trace


class Result(NamedTuple):
    """A job, what it served, and what must hold of that."""

    job: Job
    trace: Trace
    checks: list[Check]
    wall_s: float

    @classmethod
    def of(cls, job: Job, trace: Trace, wall_s: float) -> Result:
        """Judge a finished job."""
        return cls(job, trace, checks(job, trace), wall_s)

    @property
    def name(self) -> str:
        """Scenario, rate and seed."""
        return f"{self.job.scenario.name}, {self.job.rate}, seed {self.job.seed}"

    @property
    def missed(self) -> list[Check]:
        """What does not hold."""
        return [check for check in self.checks if not check.holds]

    @property
    def displays(self) -> float:
        """Everything that was shown."""
        return float(self.trace.sums["displays"].sum())


def misses(results: Iterable[Result]) -> list[str]:
    """A line for each bound that is missed."""
    return [f"{result.name}: {check}" for result in results for check in result.missed]


# ----------------------------------------------------------------------------------------------------------- plain data


def truth_json(results: Sequence[Result]) -> dict[str, Any]:
    """Everything for ``--json``: O/E by minute and ten minutes (or by hour and day), the checks, the misses."""
    return {"runs": [_run_json(result) for result in results], "misses": misses(results)}


def _run_json(result: Result) -> dict[str, Any]:
    job, trace = result.job, result.trace
    steps = {"hours": 60.0, "days": DAY_MINUTES} if job.days else {"minutes": 1.0, "ten_minutes": 10.0}
    return {
        "scenario": job.scenario.name,
        "says": job.scenario.says,
        "displays_per_s": job.displays_per_s,
        "ctr": job.rate.ctr,
        "seed": job.seed,
        "displays": round(result.displays),
        "wall_s": round(result.wall_s, 1),
        **{name: course(job, trace, minutes) for name, minutes in steps.items()},
        "early": None if result.trace.early is None else result.trace.early._asdict(),
        "checks": [check.to_json() for check in result.checks],
    }


def course(job: Job, trace: Trace, minutes: float) -> list[dict[str, float | None]]:
    """O/E of the spans of ``minutes`` from the start on, those without a display left out."""
    found: list[dict[str, float | None]] = []
    for piece in range(int(job.scenario.minutes // minutes)):
        sums = trace.over(piece * minutes * 60, (piece + 1) * minutes * 60)
        if not sums["displays"]:
            continue
        line: dict[str, float | None] = {
            "minute": piece * minutes,
            "displays": round(sums["displays"]),
            "true_ctr": sums["true"] / sums["displays"],
            "calibrated": _ratio(sums["true"], sums["p"]),
            "raw": _ratio(sums["true"], sums["raw"]),
            "log_loss_of_map": (sums["loss_p"] - sums["loss_raw"]) / sums["displays"],
        }
        for what, whose in (
            ("launched", "launched_"),
            ("conversion", "buy_"),
            ("launched_conversion", "launched_buy_"),
        ):
            true = sums[f"{whose}true"]
            if true:
                line[f"{what}_calibrated"] = _ratio(true, sums[f"{whose}p"])
                line[f"{what}_raw"] = _ratio(true, sums[f"{whose}raw"])
        found.append(line)
    return found


def _ratio(observed: float, expected: float) -> float | None:
    return observed / expected if expected else None


# ---------------------------------------------------------------------------------------------------------------- table

_COLUMNS = {
    "minutes": ("a minute", "the new base"),
    "ten minutes": ("ten minutes", "what won", "clicks of a day"),
    "launched": ("launched ads", "launched ads at 20 minutes"),
    "conversions": ("conversions of a day", "conversions of the new campaign"),
}


def truth_table(results: Sequence[Result]) -> Table:
    """A line for each job: the lowest and highest O/E of what the bounds hold for, calibrated over raw."""
    drawn = Table(
        title="O/E = Σ true p / Σ served p, calibrated | raw; lowest to highest of what is judged", title_justify="left"
    )
    drawn.add_column("scenario", no_wrap=True)
    for name in ("displays/s", "CTR", "seed", *_COLUMNS, "log loss", "instruments", "misses"):
        drawn.add_column(name, justify="right", no_wrap=True)
    before = ""
    for result in results:
        job = result.job
        if before and before != job.scenario.name:
            drawn.add_section()
        before = job.scenario.name
        cost = _values(result, ("log loss that the map costs",), "calibrated")
        drawn.add_row(
            job.scenario.name,
            f"{job.displays_per_s:,.0f}",
            f"{job.rate.ctr:.1%}",
            str(job.seed),
            *(_range(result, of) for of in _COLUMNS.values()),
            f"{max(cost):+.1e}" if cost else "",
            f"{early.measured - early.came:+.3f}" if (early := result.trace.early) else "",
            str(len(result.missed)) if result.missed else "",
        )
    return drawn


def _range(result: Result, of: tuple[str, ...]) -> str:
    cells = []
    for scores in ("calibrated", "raw"):
        values = _values(result, of, scores)
        if values:
            low, high = f"{min(values):.3f}", f"{max(values):.3f}"
            cells.append(low if len(values) == 1 else f"{low}-{high}")
    return " | ".join(cells)


def _values(result: Result, of: tuple[str, ...], scores: str) -> list[float]:
    return [check.value for check in result.checks if check.of in of and check.scores == scores]
