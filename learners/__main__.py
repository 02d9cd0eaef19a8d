"""``python -m learners``: train a base snapshot, look into a snapshot."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from learners.snapshots.inspection import facts_of, lines_of
from learners.snapshots.manifest import SnapshotError
from learners.training.cli import base

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they show local variables: rows of people
    help="Train a base model and inspect snapshots.",
)
app.command()(base)


@app.command()
def inspect(
    snapshot: Annotated[str, typer.Argument(help="A snapshot's directory or URL, ending in v000000000042.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Check a snapshot's checksums and print what it holds."""
    try:
        facts = facts_of(snapshot)
    except SnapshotError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for line in lines_of(facts):
        typer.echo(line)


if __name__ == "__main__":
    app()
