"""The ports of a serving process: one for everything, and one of their own for probes where it is asked for."""

from __future__ import annotations

import logging
import socket
from contextlib import AsyncExitStack

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from serving.admission import Admission
from serving.callers import Callers
from serving.http import Server, application, probes
from serving.metrics import ServingMetrics
from serving.refusals import Refusal
from serving.served_log import ServedLog
from serving.settings import ServingSettings
from stream.servers.http_site import BoundedSite, Connections, most_connections

FINISH_REQUESTS_S = 3.0
_PROBE_CONNECTIONS = 16
_PROBE_TIMEOUT_S = 5.0


def admission_of(settings: ServingSettings, served_log: ServedLog) -> Admission:
    """The bounds of what is in flight: fewer calls than connections, so that one can always make room."""
    most = most_connections(settings.max_connections)
    return Admission(
        most_calls=min(settings.max_calls, max(1, most // 2)),
        most_rows=settings.max_rows_in_flight,
        blocked=lambda: served_log.congestion,
    )


async def listen(
    stack: AsyncExitStack,
    server: Server,
    settings: ServingSettings,
    admission: Admission,
    host: str,
    listener: socket.socket,
    probe_listener: socket.socket | None = None,
) -> None:
    """Answer on bound sockets until ``stack`` is closed, which finishes the calls in flight. Raises OSError."""
    token = None if settings.api_token is None else settings.api_token.get_secret_value()
    callers = Callers.of(settings.allowed_hosts, host, token)
    metrics = server.metrics
    connections = Connections(
        most=most_connections(settings.max_connections),
        header_timeout_s=settings.header_timeout_s,
        answer_timeout_s=settings.answer_timeout_s,
        closed=lambda reason: metrics.closed_connections.labels(reason).inc(),
    )
    metrics.open_connections.set_function(lambda: len(connections))
    metrics.calls.set_function(lambda: admission.calls)
    app = application(server, callers, admission, connections, settings.body_timeout_s)
    await _open(stack, app, listener, connections, metrics, settings.keepalive_timeout_s)
    if probe_listener is not None:
        few = Connections(most=_PROBE_CONNECTIONS, header_timeout_s=_PROBE_TIMEOUT_S, answer_timeout_s=_PROBE_TIMEOUT_S)
        await _open(stack, probes(server, few), probe_listener, few, metrics, _PROBE_TIMEOUT_S)


async def _open(
    stack: AsyncExitStack,
    app: web.Application,
    listener: socket.socket,
    connections: Connections,
    metrics: ServingMetrics,
    keepalive_timeout_s: float,
) -> None:
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=FINISH_REQUESTS_S,
        keepalive_timeout=keepalive_timeout_s,
        lingering_time=1.0,  # what is left of a refused body is read for so long, that the refusal may arrive
        auto_decompress=False,  # serving.bodies inflates, within bounds
        logger=_logger(metrics),
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await BoundedSite(runner, listener, connections).start()


def _logger(metrics: ServingMetrics) -> logging.Logger:
    """What aiohttp logs, but for what is no HTTP: that is the peer's fault, and counted."""

    def is_ours(line: logging.LogRecord) -> bool:
        error = line.exc_info[1] if line.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        metrics.refused_calls.labels(Refusal.HTTP.label).inc()
        return False

    logger = logging.Logger("serving.http")
    logger.parent = logging.getLogger("aiohttp.server")
    logger.addFilter(is_ours)
    return logger
