"""The verb `python -m stream rebuild`."""

from __future__ import annotations

import logging
from typing import Annotated

import typer
from pydantic import ValidationError

from stream.servers.settings import StreamSettings, settings_fault


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
    from stream.cli.rebuild_run import run_rebuild  # and torch with it: no other verb waits for that

    equal = run_rebuild(settings, snapshots, version=version, start=start, spec=spec, as_json=as_json)
    raise typer.Exit(0 if equal else 1)


def _settings() -> StreamSettings:
    try:
        settings = StreamSettings()
    except ValidationError as error:
        raise typer.BadParameter(settings_fault(error)) from error
    if settings.kafka_bootstrap_servers is None:
        raise typer.BadParameter(
            "KAFKA_BOOTSTRAP_SERVERS is not set: journal and examples lie on the worker's broker. Set it to that one."
        )
    return settings
