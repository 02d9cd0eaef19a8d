"""One run of `python -m stream rebuild`: progress, the result or the error, as people or programs read them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from learners.features.spec import FeatureSpec, load_spec
from learners.features.spec_parts import SpecError
from learners.snapshots.manifest import Manifest, SnapshotError
from stream.kafka.admin import BrokerUnreachableError
from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogEndsEarlierError
from stream.learn.rebuild import RebuildError, Rebuilt, rebuild
from stream.learn.relearn import RelearnError
from stream.servers.settings import StreamSettings


def run_rebuild(
    settings: StreamSettings, snapshots: str, *, version: int | None, start: int | None, spec: str, as_json: bool
) -> bool:
    """Make the version again and print what came out; whether its weights are equal.

    Ends the program where it is not possible (typer.Exit, 1) or was asked for wrongly (typer.BadParameter).
    """
    try:
        rebuilt = asyncio.run(_rebuild(settings, snapshots, version, start, spec))
    except (BrokerUnreachableError, LogEndsEarlierError, RebuildError, RelearnError, SnapshotError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except SpecError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        typer.echo(orjson.dumps(asdict(rebuilt) | {"equal": rebuilt.equal}, option=orjson.OPT_INDENT_2))
    else:
        _print(rebuilt)
    return rebuilt.equal


async def _rebuild(
    settings: StreamSettings, snapshots: str, version: int | None, start: int | None, spec: str
) -> Rebuilt:
    def spec_of(manifest: Manifest) -> FeatureSpec:
        found = load_spec(spec or manifest.shape.spec_name)
        if found.hash != manifest.shape.spec_hash:
            raise SpecError(
                f"snapshot {manifest.version} was made with feature spec {manifest.shape.spec_name} "
                f"{manifest.shape.spec_hash}, {found.name} is {found.hash}: its examples cannot be read. Give that "
                "spec with --spec FILE.toml."
            )
        return found

    broker = await find_broker(settings)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("versions made again", total=None)
        return await rebuild(
            broker,
            snapshots,
            spec_of,
            version=version,
            start_version=start,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _print(rebuilt: Rebuilt) -> None:
    typer.echo(
        f"version {rebuilt.version} made again from snapshot {rebuilt.start_version}: {rebuilt.batches} batches, "
        f"{rebuilt.rows} rows, {rebuilt.seconds:.2f} s"
    )
    typer.echo(f"made again    {rebuilt.sha256}")
    if rebuilt.published_sha256 is not None:
        typer.echo(f"as published  {rebuilt.published_sha256}  {rebuilt.deltas} deltas applied")
    if rebuilt.snapshot_sha256 is not None:
        typer.echo(f"its snapshot  {rebuilt.snapshot_sha256}")
    for note in rebuilt.notes:
        typer.echo(f"note: {note}")
    typer.echo("equal" if rebuilt.equal else "DIFFERENT: the weights were not made from this log alone")
