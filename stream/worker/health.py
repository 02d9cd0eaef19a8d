"""The worker's small HTTP server: `/metrics` for Prometheus, probes for scripts and monitoring."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stream.embedded.process import ServerStartError
from stream.servers.http_site import BoundedSite, Connections, most_connections, noting_calls

_MOST_CONNECTIONS = 64  # probes and a scraper or two
_TIMEOUT_S = 10.0


class HealthServer:
    """`/readyz` and `/healthz` answer 200 while ``ready``, else 503; `/livez` and `/metrics` always answer.

    ``degraded`` says what does not work though the worker goes on, by name; the answer tells it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = False
        self.degraded: Mapping[str, str] = {}
        self._registry = registry
        self._connections = Connections(
            most=most_connections(_MOST_CONNECTIONS), header_timeout_s=_TIMEOUT_S, answer_timeout_s=_TIMEOUT_S
        )
        app = web.Application(middlewares=[noting_calls(self._connections)])
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/healthz", self._readyz),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=_TIMEOUT_S, lingering_time=1.0, auto_decompress=False
        )

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises ServerStartError when the port is taken."""
        await self._runner.setup()
        try:
            listener = socket.create_server((host, port), family=_family(host))
            await BoundedSite(self._runner, listener, self._connections).start()
        except OSError as error:
            raise ServerStartError(
                f"port {port} on {host} cannot be listened on ({error.strerror}): the worker would run unseen and was "
                "not started. Stop the program that holds it, or choose another with --metrics-port."
            ) from error

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _livez(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _readyz(self, _: web.Request) -> web.Response:
        told = {"ready": self.ready} | ({"degraded": dict(self.degraded)} if self.degraded else {})
        return web.json_response(told, status=200 if self.ready else 503)


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
