"""The verb `python -m stream worker`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from pydantic import ValidationError

from learners.features.spec import load_spec
from learners.features.spec_parts import SpecError
from stream.agents.source import SourceKind
from stream.servers.logs import log_to_stderr
from stream.servers.settings import StreamSettings, settings_fault
from stream.worker.options import AGENTS, WorkerOptions, WorkerStartError
from stream.worker.process import run_worker
from stream.worker.settings import Clock, WorkerSettings


def worker(
    snapshots: Annotated[str, typer.Option(help="Directory or URL of the snapshots; it must hold a base snapshot.")],
    spec: Annotated[
        str, typer.Option(help="Feature spec: kuairand, marketplace or a TOML file.", envvar="MILLSTREAM_SPEC")
    ] = "marketplace",
    agents: Annotated[str, typer.Option(help="Agents to run, by commas.")] = ",".join(AGENTS),
    archive: Annotated[
        str,
        typer.Option(help="Directory or URL for archived examples; none by default.", envvar="MILLSTREAM_ARCHIVE"),
    ] = "",
    clock: Annotated[
        Clock, typer.Option(help="wall: live; log: time is what the records say (replays).", envvar="MILLSTREAM_CLOCK")
    ] = "wall",
    runner: Annotated[
        SourceKind,
        typer.Option(
            help="What reads the topics: faust, or aiokafka where inputs come as one event a record.",
            envvar="MILLSTREAM_RUNNER",
        ),
    ] = "faust",
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics and /healthz; none unless given.")] = None,
    metrics_host: Annotated[str, typer.Option(help="Address to listen on for them.")] = "127.0.0.1",
) -> None:
    """Join, fold session features, learn, calibrate and archive: run the agents of the stream until SIGTERM.

    Without KAFKA_BOOTSTRAP_SERVERS or REDIS_URL an embedded server is started, and its address logged. Windows and
    intervals: MILLSTREAM_CLICK_WINDOW_S, MILLSTREAM_LEARN_BATCH_ROWS, MILLSTREAM_PUBLISH_INTERVAL_S ...
    A new base that is worse than the serving line is refused: MILLSTREAM_FORCE_BASE=1 takes it, there is no --force.
    Publishing stops when the log loss of MILLSTREAM_DIVERGED_LOSS_BATCHES (20) batches exceeds
    MILLSTREAM_DIVERGED_LOSS_RATIO (3) times that of a constant.
    """
    chosen = _chosen(agents)
    log_to_stderr()
    try:
        settings, intervals = StreamSettings(), WorkerSettings()
        intervals.join(), intervals.learning(clock), intervals.calibrator(), intervals.archive()
        options = WorkerOptions(
            spec=load_spec(spec),
            snapshots=snapshots,
            archive=archive or None,
            agents=chosen,
            clock=clock,
            runner=runner,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
        )
    except ValidationError as error:
        raise typer.BadParameter(settings_fault(error)) from error
    except (SpecError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        status = asyncio.run(run_worker(options, settings, intervals))
    except WorkerStartError as error:
        typer.echo(f"error: {error}", err=True)
        status = 1
    raise typer.Exit(status)


def _chosen(agents: str) -> list[str]:
    names = [name.strip() for name in agents.split(",") if name.strip()]
    unknown = [name for name in names if name not in AGENTS]
    if unknown or not names:
        raise typer.BadParameter(
            f"--agents {agents!r} must name one or more of {', '.join(AGENTS)}: "
            f"{', '.join(unknown) or 'nothing'} cannot be run."
        )
    return names
