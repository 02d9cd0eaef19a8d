"""The worker's small HTTP server: `/metrics` for Prometheus, `/healthz` for scripts and monitoring."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stream.embedded.process import ServerStartError


class HealthServer:
    """`/healthz` answers 200 while ``ready``, else 503; `/metrics` always answers.

    ``degraded`` says what does not work though the worker goes on, by name; the answer tells it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = False
        self.degraded: Mapping[str, str] = {}
        self._registry = registry
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics), web.get("/healthz", self._healthz)])
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises ServerStartError when the port is taken."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
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

    async def _healthz(self, _: web.Request) -> web.Response:
        told = {"ready": self.ready} | ({"degraded": dict(self.degraded)} if self.degraded else {})
        return web.json_response(told, status=200 if self.ready else 503)
