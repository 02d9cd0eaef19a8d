"""`python -m serving`: rank ads over HTTP with a model that follows the stream."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
from contextlib import ExitStack
from typing import Annotated

import typer
from pydantic import ValidationError

from learners.features.spec import load_spec
from learners.features.spec_parts import SpecError
from learners.snapshots.manifest import SnapshotError
from serving.metrics import ServingMetrics
from serving.server import Clock, ServingOptions, ServingServer
from serving.settings import ServingSettings
from serving.snapshots import NoSnapshotError
from stream.kafka.admin import BrokerUnreachableError, TopicMismatchError, ensure_topics
from stream.kafka.broker import find_broker
from stream.servers.logs import log_to_stderr
from stream.servers.setting_names import say_unknown_settings
from stream.servers.settings import StreamSettings, redis_client_options, settings_fault

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BAD_USAGE, FAILED = 2, 1
STOP_LIMIT_S = 9.5  # supervisors send SIGKILL after 10


@app.command()
def serve(
    snapshots: Annotated[str, typer.Option(help="Directory or fsspec URL of the snapshots.")],
    spec: Annotated[
        str, typer.Option(envvar="MILLSTREAM_SPEC", help="Feature spec: kuairand, marketplace or a TOML file.")
    ] = "marketplace",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    probe_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            envvar="MILLSTREAM_PROBE_PORT",
            help="Port of /livez, /readyz and /metrics alone, beside the other; none unless given.",
        ),
    ] = None,
    clock: Annotated[
        Clock, typer.Option(envvar="MILLSTREAM_CLOCK", help="wall: live; log: time is what the requests say (replays).")
    ] = "wall",
) -> None:
    """Serve rankings until SIGTERM, SIGHUP or Ctrl-C. The broker and Redis: KAFKA_BOOTSTRAP_SERVERS, REDIS_URL."""
    log_to_stderr()
    try:
        status = asyncio.run(_run(spec, snapshots, host, (port, probe_port), clock))
    except (_UsageError, SpecError, NoSnapshotError, SnapshotError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_USAGE) from error
    except (BrokerUnreachableError, TopicMismatchError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error
    raise typer.Exit(status)


class _UsageError(ValueError):
    """What the caller asked for cannot be done."""


async def _run(spec_name: str, snapshots: str, host: str, ports: tuple[int, int | None], clock: Clock) -> int:
    stopped = asyncio.Event()

    def begin_stop() -> None:
        if not stopped.is_set():
            _start_watchdog()
            stopped.set()

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(name, begin_stop)
    stream, settings = _settings()
    spec = load_spec(spec_name)
    if stream.kafka_bootstrap_servers is None or stream.redis_url is None:
        unset = "KAFKA_BOOTSTRAP_SERVERS" if stream.kafka_bootstrap_servers is None else "REDIS_URL"
        raise _UsageError(
            f"{unset} is not set: the embedded broker and Redis live only inside the program that starts them, so "
            "serving alone would share nothing with the workers. Set it, or run everything with 'make demo'."
        )
    port, probe_port = ports
    with ExitStack() as sockets:
        listener = sockets.enter_context(_listener(host, port))
        probe_listener = None if probe_port is None else sockets.enter_context(_listener(host, probe_port))
        broker = await find_broker(stream)
        await ensure_topics(broker.bootstrap, stream.topics(), broker.options)
        options = ServingOptions(
            spec=spec,
            snapshots=snapshots,
            broker=broker,
            redis_url=stream.redis_url,
            redis_options=redis_client_options(stream),
            clock=clock,
            host=host,
        )
        server = ServingServer(options, settings, ServingMetrics())
        try:
            await server.start(listener, probe_listener)
        except OSError as error:
            raise _in_use(host, port, error) from error
        address = listener.getsockname()
        typer.echo(f"serving {spec.name} on http://{host}:{address[1]}/", err=True)
        await stopped.wait()
        await server.stop()
    return 0


def _start_watchdog() -> None:
    """End the process when its stop hangs, for what nobody waits for any more: clients of a broker that is away."""

    def cut_off() -> None:
        typer.echo(f"the stop was cut off after {STOP_LIMIT_S:g} s", err=True)
        os._exit(0)

    watchdog = threading.Timer(STOP_LIMIT_S, cut_off)
    watchdog.daemon = True
    watchdog.start()


def _settings() -> tuple[StreamSettings, ServingSettings]:
    say_unknown_settings()
    try:
        return StreamSettings(), ServingSettings()
    except ValidationError as error:
        raise _UsageError(settings_fault(error)) from error


def _listener(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything else is started."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _UsageError(f"host {host!r} is no address of this machine ({error}): give another --host.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _in_use(host, port, error) from error
    return listener


def _in_use(host: str, port: int, error: OSError) -> _UsageError:
    if error.errno == errno.EADDRINUSE:
        return _UsageError(
            f"port {port} on {host} is in use: serving cannot listen there and was not started. Stop the program that "
            "holds it, or choose another with --port."
        )
    return _UsageError(f"serving cannot listen on {host}:{port} ({error}). Choose another --host or --port.")


if __name__ == "__main__":
    app()
