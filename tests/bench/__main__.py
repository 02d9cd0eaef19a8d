"""``python -m tests.bench NAME``: run one benchmark; exit 1 when a target is missed, 2 when NAME is unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from tests.bench import join, learner, loop, losses, table, truth
from tests.bench.harness import Measure, all_hold, as_json, as_table, machine, progress


def _learner(*, quick: bool) -> list[Measure]:
    return [*learner.measures(quick=quick), *table.measures(quick=quick)]


BENCHMARKS: dict[str, tuple[str, Callable[..., list[Measure]]]] = {
    "learner": ("DeepFM against deepctr-torch and FuxiCTR, then all of `table`; about eight minutes", _learner),
    "join": (
        "the join, beside bytewax, Quix Streams and Faust; session features, recovery; ten minutes",
        join.measures,
    ),
    "loop": ("all agents catching up on a log over Apache Kafka, while serving answers; six minutes", loop.measures),
    "losses": ("losses of delayed clicks, in a world of known probabilities; five minutes", losses.measures),
    "table": ("the embedding table alone: look-ups, memory, growth, snapshots", table.measures),
    "truth": ("the world with a known truth: displays drawn a second, and run through all cores", truth.measures),
    "churn": ("100 million distinct ids through admission and expiry", table.churn),
}


def main(
    name: Annotated[
        str, typer.Argument(help="join, learner, loop, losses, table, truth or churn; none lists them.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rows and rounds, for a first look.")] = False,
) -> None:
    """Measure Millstream against its peers and targets."""
    if name not in BENCHMARKS:
        for known, (text, _) in BENCHMARKS.items():
            progress(f"make bench NAME={known:8} {text}")
        raise typer.Exit(2 if name else 0)
    progress(f"machine: {machine()}")
    found = BENCHMARKS[name][1](quick=quick)
    typer.echo(as_json(name, found) if json else as_table(found))
    raise typer.Exit(not all_hold(found))


if __name__ == "__main__":
    typer.run(main)
