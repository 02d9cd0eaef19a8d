"""The verb `python -m stream rebuild`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from learners.snapshot import Manifest, SnapshotError
from learners.spec import FeatureSpec, SpecError, load_spec
from stream.admin import BrokerUnreachableError
from stream.broker import find_broker
from stream.log_reader import LogEndsEarlierError
from stream.rebuild import RebuildError, Rebuilt
from stream.rebuild import rebuild as make_again
from stream.relearning import RelearnError
from stream.settings import StreamSettings


def rebuild(
    snapshots: Annotated[str, typer.Option(help="Directory or URL of the stream's snapshots.")],
    version: Annotated[
        int | None, typer.Option(min=0, help="Version to make again; default: the newest published.")
    ] = None,
    start: Annotated[
        int | None, typer.Option("--from", min=0, help="Version of an older snapshot to start from.")
    ] = None,
    spec: Annotated[str, typer.Option(help="Feature spec, a name or a TOML file; default: the snapshot's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Make a model version again from a snapshot and the journal, and compare the SHA-256 of its weights.

    It is compared with the version as published (an older snapshot with the deltas of the weights topic) and with the
    snapshot of that very version, where there is one. Exit status: 0 equal, 1 different or not possible, 2 bad usage.
    """
    settings = _settings()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it repeats what our errors say
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
    raise typer.Exit(0 if rebuilt.equal else 1)


def _settings() -> StreamSettings:
    try:
        settings = StreamSettings()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'settings'}: {f['msg']}" for f in error.errors())
        raise typer.BadParameter(f"the environment holds settings that cannot be used: {faults}") from error
    if settings.kafka_bootstrap_servers is None:
        raise typer.BadParameter(
            "KAFKA_BOOTSTRAP_SERVERS is not set: journal and examples lie on the worker's broker. Set it to that one."
        )
    return settings


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
        return await make_again(
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
