"""The HTTP face: routes, status codes, probes, the live page."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any, Protocol

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from learners.features.shown import cut, shown
from serving.admission import RETRY_AFTER_S, Admission
from serving.bodies import body_of
from serving.callers import Callers
from serving.metrics import ROUTES, ServingMetrics
from serving.refusals import Refusal, RefusedError
from stream.servers.http_site import Connections
from stream.servers.logs import RateLimitedLog

PROBES = ("/livez", "/healthz", "/readyz")
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/uPlot.iife.min.js": ("uPlot.iife.min.js", "text/javascript"),
    "/uPlot.min.css": ("uPlot.min.css", "text/css"),
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answer = Callable[[bytes], Awaitable[bytes]]


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

    def degraded(self) -> Mapping[str, str]:
        """What is amiss although answers are given, by its word on the metrics page."""
        ...

    def publish_health(self) -> None:
        """Bring the metrics page up to date."""
        ...

    def status(self) -> dict[str, Any]:
        """What the live page shows."""
        ...


def application(
    server: Server, callers: Callers, admission: Admission, connections: Connections, body_timeout_s: float
) -> web.Application:
    """Everything that is served."""
    app = _application(server, callers, connections)
    for path, answer in (("/v1/rank", server.rank), ("/v1/score", server.score)):
        app.router.add_post(path, _answering(answer, callers, admission, connections, body_timeout_s))

    async def status(_: web.Request) -> web.Response:
        return _json(server.status())

    app.router.add_get("/v1/status", status)
    for path, (name, content_type) in _PAGE_FILES.items():
        app.router.add_get(path, _page_file(name, content_type))
    return app


def probes(server: Server, connections: Connections) -> web.Application:
    """Probes and metrics alone, for a port of their own."""
    return _application(server, Callers(), connections)


def _application(server: Server, callers: Callers, connections: Connections) -> web.Application:
    app = web.Application(middlewares=[_counting(server.metrics, callers, connections)])

    async def livez(_: web.Request) -> web.Response:
        return _json({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        reasons = server.unready()
        state = {"ready": not reasons, "reasons": reasons, "degraded": server.degraded()}
        return _json(state, 503 if reasons else 200)

    async def metrics(_: web.Request) -> web.Response:
        server.publish_health()
        body = generate_latest(server.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/livez", livez)
    app.router.add_get("/healthz", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def _answering(
    answer: Answer, callers: Callers, admission: Admission, connections: Connections, body_timeout_s: float
) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        callers.check_call(request.headers)
        with admission.call(0):  # who would be refused anyhow need not be read
            pass
        async with body_of(request, admission, body_timeout_s) as body:
            # an ad is an object in JSON: about how many there are is known before it is read
            with admission.call(body.count(b"{")), connections.kept(request.transport):
                return web.Response(body=await answer(body), content_type="application/json")

    return handle


def _counting(metrics: ServingMetrics, callers: Callers, connections: Connections) -> Middleware:
    report = RateLimitedLog()

    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in PROBES:
                callers.check_host(request.headers)
            return await handler(request)
        except RefusedError as error:
            metrics.refused_calls.labels(error.refusal.label).inc()
            return _refused(error)
        except web.HTTPException as error:
            return _not_there(request, error)
        except ArithmeticError as error:
            report("a request could not be scored", error=str(error))
            return _json({"error": str(error)}, 503)
        except ConnectionError:  # nobody is there to read it; what is raised here aiohttp would log
            metrics.refused_calls.labels(Refusal.GONE.label).inc()
            return web.Response(status=Refusal.GONE.status)
        except Exception as error:  # noqa: BLE001  (whatever a call brings about, the next one is answered)
            report("a call could not be answered", exc_info=error)
            return _json({"error": "the call could not be answered; the log of serving says why"}, 500)

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        began, route = time.perf_counter(), request.path if request.path in ROUTES else "other"
        status = Refusal.GONE.status
        connections.called(request.transport)
        try:
            response = await answered(request, handler)
            status = response.status
            if connections.crowded:
                response.force_close()
            return response
        finally:
            metrics.requests.labels(route, f"{status // 100}xx").inc()
            metrics.request_seconds.labels(route).observe(time.perf_counter() - began)

    return count


def _refused(error: RefusedError) -> web.Response:
    response = _json({"error": str(error)}, error.refusal.status)
    if error.refusal is Refusal.OVERLOAD:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    if error.refusal is Refusal.TOKEN:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.closes:
        response.force_close()
    return response


def _not_there(request: web.Request, error: web.HTTPException) -> web.Response:
    asked = f"{request.method} {shown(request.path)}"
    response = _json({"error": f"{asked}: {cut(error.reason)}. serving/README.md lists what there is."}, error.status)
    if allowed := error.headers.get("Allow"):
        response.headers["Allow"] = allowed
    return response


def _page_file(name: str, content_type: str) -> Handler:
    content = (resources.files("serving") / "page" / name).read_bytes()

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8")

    return handle


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
