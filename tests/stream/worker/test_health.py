"""The worker's HTTP server among peers that only hold connections."""

from __future__ import annotations

import asyncio

import aiohttp
from prometheus_client import CollectorRegistry

from stream.embedded.process import free_port
from stream.worker.health import HealthServer


async def test_probes_are_answered_while_others_hold_more_connections_than_there_may_be() -> None:
    """A hundred silent ones; alive is said always, ready when it is."""
    health, port = HealthServer(CollectorRegistry()), free_port()
    await health.start("127.0.0.1", port)
    try:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        found = []
        async with asyncio.timeout(10), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            for health.ready in (False, True):
                for path in ("/livez", "/readyz", "/healthz", "/metrics"):
                    async with http.get(path) as answer:
                        found.append(answer.status)
        assert found == [200, 503, 503, 200, 200, 200, 200, 200]
        for _, writer in silent:
            writer.close()
    finally:
        await health.stop()
