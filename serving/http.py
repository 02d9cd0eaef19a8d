"""The HTTP face: routes, status codes, probes, the live page."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Protocol

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.messages import BadRequestError
from serving.metrics import ROUTES, ServingMetrics

log = structlog.get_logger()

MAX_BODY_BYTES = 16 << 20
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/uPlot.iife.min.js": ("uPlot.iife.min.js", "text/javascript"),
    "/uPlot.min.css": ("uPlot.min.css", "text/css"),
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = Callable[[bytes], Awaitable[bytes]]


class Server(Protocol):
    """What the routes ask."""

    metrics: ServingMetrics

    async def rank(self, body: bytes) -> bytes:
        """Answer a rank request."""
        ...

    async def score(self, body: bytes) -> bytes:
        """Answer a score call."""
        ...

    def unready(self) -> list[str]:
        """Why no traffic should be sent here; empty when ready."""
        ...

    def status(self) -> dict[str, Any]:
        """What the live page shows."""
        ...


def application(server: Server) -> web.Application:
    """The aiohttp application over a server."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_counting(server.metrics)])
    app.router.add_post("/v1/rank", _answering(server.rank))
    app.router.add_post("/v1/score", _answering(server.score))

    async def healthz(_: web.Request) -> web.Response:
        return _json({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        reasons = server.unready()
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def status(_: web.Request) -> web.Response:
        return _json(server.status())

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest(server.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/v1/status", status)
    app.router.add_get("/metrics", metrics)
    for path, (name, content_type) in _PAGE_FILES.items():
        app.router.add_get(path, _page_file(name, content_type))
    return app


def _answering(answer: Body) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            return web.Response(body=await answer(body), content_type="application/json")
        except BadRequestError as error:
            return _json({"error": str(error)}, 400)
        except ArithmeticError as error:
            log.error("a request could not be scored", error=str(error))
            return _json({"error": str(error)}, 503)

    return handle


def _counting(metrics: ServingMetrics) -> Middleware:
    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        began, route, status = time.perf_counter(), request.path if request.path in ROUTES else "other", 500
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status = error.status
            if status == 413:
                return _json(
                    {
                        "error": f"the body is larger than {MAX_BODY_BYTES} bytes: nothing was scored. Send the "
                        "requests in several calls."
                    },
                    413,
                )
            raise
        finally:
            metrics.requests.labels(route, f"{status // 100}xx").inc()
            metrics.request_seconds.labels(route).observe(time.perf_counter() - began)

    return count


def _page_file(name: str, content_type: str) -> Handler:
    content = (resources.files("serving") / "page" / name).read_bytes()

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8")

    return handle


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
