"""`make fuzz`: mutated inputs against every decoder, then against running programs, for as long as it is told to.

What fails is added to the corpus (`tests/fuzz/corpus`), which the test suite replays. Exit 1 then.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.fuzz.engine import Campaign, Explored, as_json
from tests.fuzz.programs import ProgramsOutcome, fuzz_programs
from tests.fuzz.target import TAKEN
from tests.fuzz.targets import TARGETS

PROGRAMS = "programs"
_PROGRAMS_SHARE = 0.15  # of the time
_LEAST_PROGRAMS_S = 5.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    seconds: Annotated[float, typer.Option(min=1, help="In all; programs take some more to start and stop.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed draws the same inputs of each target.")] = 1,
    target: Annotated[list[str] | None, typer.Option(help=f"{', '.join(TARGETS)}, {PROGRAMS}. Repeatable.")] = None,
    as_object: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Fuzz for some seconds."""
    names = target or [*TARGETS, PROGRAMS]
    if unknown := sorted(set(names) - {*TARGETS, PROGRAMS}):
        typer.echo(f"--target {unknown[0]} is none of {', '.join(TARGETS)}, {PROGRAMS}.", err=True)
        raise typer.Exit(2)
    pure = [name for name in names if name != PROGRAMS]
    programs_s = (max(_LEAST_PROGRAMS_S, seconds * _PROGRAMS_SHARE) if pure else seconds) if PROGRAMS in names else 0.0
    found = Campaign(pure, max(1.0, seconds - programs_s), seed, _progress).run() if pure else []
    outcome = _programs(programs_s, seed) if programs_s else None
    saved = [str(TARGETS[one.target].save(one.failure.value)) for one in found if one.failure is not None]
    if as_object:
        said: dict[str, Any] = {"seed": seed, "targets": [*map(as_json, found)], "corpus": saved}
        typer.echo(json.dumps(said | ({"programs": outcome.as_json()} if outcome else {})))
    else:
        _print(found, outcome, saved)
    raise typer.Exit(bool(saved or (outcome and outcome.faults)))


def _programs(seconds: float, seed: int) -> ProgramsOutcome:
    typer.echo(f"a worker with all agents and serving: {seconds:.0f} s", err=True)
    with tempfile.TemporaryDirectory(prefix="millstream-fuzz-") as folder:
        return asyncio.run(fuzz_programs(Path(folder), seconds=seconds, seed=seed))


def _progress(found: Explored) -> None:
    what = f"failed: {found.failure.error}" if found.failure else f"{found.executions} inputs"
    typer.echo(f"{found.target}: {what}"[:500], err=True)


def _print(found: list[Explored], outcome: ProgramsOutcome | None, saved: list[str]) -> None:
    if found:
        typer.echo(f"{'target':<24}{'inputs':>10}{'taken':>10}{'rejected':>10}")
    for one in found:
        taken = one.reasons.get(TAKEN, 0)
        rest = sum(one.reasons.values()) - taken
        failed = f"  FAILED {one.failure.error:.200}" if one.failure else ""
        typer.echo(f"{one.target:<24}{one.executions:>10}{taken:>10}{rest:>10}{failed}")
    if outcome is not None:
        typer.echo(f"{PROGRAMS:<24}{outcome.records:>10} records, {outcome.calls} calls, {outcome.rejected} rejected")
    for fault in outcome.faults if outcome else []:
        typer.echo(f"FAILED {PROGRAMS}: {fault}")
    for path in saved:
        typer.echo(f"added to the corpus: {path}")
    failures = len(saved) + len(outcome.faults if outcome else [])
    typer.echo(f"{sum(one.executions for one in found)} inputs, {failures} failures")


if __name__ == "__main__":
    sys.exit(app())
