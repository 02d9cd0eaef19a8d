"""``python -m replay truth``: the product's cores in a world whose true probabilities are known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from replay.progress import Progress
from replay.terminal import BAD_USAGE, FAILED, console, json_bytes, make_folder, print_json, stop
from replay.truth_jobs import SEEDS, chosen, run_jobs
from replay.truth_picture import PlotError, draw, matplotlib_figure
from replay.truth_report import misses, truth_json, truth_table
from replay.truth_scenarios import SCENARIOS

_FILE_WIDTH = 180  # of the table where stdout is no terminal


def truth(
    scenario: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(SCENARIOS)}; may be given several times. Default: all of them."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, fewer minutes, scenarios that cover each mechanism.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many markets each scenario is run in.")] = len(SEEDS),
    processes: Annotated[
        int, typer.Option(min=1, help="Scenarios that run side by side; each keeps one core busy.")
    ] = os.cpu_count() or 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for truth.json and truth.png; the picture needs the extra plot.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Serve, join, learn and calibrate on simulated time where the true probabilities are known, and hold O/E to it.

    1,000 displays a second at a click rate of 1 % and 50 at 6.5 %: starts, ramps, outages, launches, jumps, late and
    lagging clicks, a new base, an auction that feeds itself, conversions. Two runs print the same figures. Exit 1 names
    each bound that is missed.
    """
    progress = Progress(quiet=quiet)
    try:
        jobs = chosen(scenario, quick=quick, seeds=range(1, seeds + 1))
        if out is not None:
            matplotlib_figure()
            make_folder(out)
    except (ValueError, PlotError) as error:
        stop(error, BAD_USAGE)
    results = run_jobs(jobs, processes, progress)
    if out is not None:
        try:
            (out / "truth.json").write_bytes(json_bytes(truth_json(results)))
            draw(results, out / "truth.png")
        except OSError as error:
            stop(error, BAD_USAGE)
    if as_json:
        print_json(truth_json(results))
    else:
        console(width=_FILE_WIDTH).print(truth_table(results))
    for line in (missed := misses(results)):
        typer.echo(f"missed: {line}", err=True)
    if missed:
        raise typer.Exit(FAILED)
