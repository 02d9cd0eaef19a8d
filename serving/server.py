"""One serving process: its parts, how they start, and how they stop without losing a served row."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import structlog

from learners.features.encode import Encoder
from learners.features.spec import FeatureSpec
from serving.calibrator import HotCalibrator
from serving.cohorts import CohortFigures, points, publish, shown
from serving.features import SessionFeatures
from serving.followers import CalibrationFollower, WeightsFollower
from serving.freshness import Freshness
from serving.health import Health
from serving.impression_ids import ImpressionIds
from serving.listening import admission_of, listen
from serving.messages import Limits, RequestParser
from serving.metrics import ServingMetrics
from serving.model import HotModel
from serving.ranking import Ranker
from serving.served_log import ServedLog
from serving.service import ScoringService
from serving.settings import ServingSettings
from serving.snapshots import LoadedModel, load_newest
from serving.status import quantiles_of
from serving.tasks import begin, end, stopped
from stream.kafka.broker import Broker

log = structlog.get_logger()

Clock = Literal["wall", "log"]
_FLUSH_S, _STOP_PART_S = 3.0, 0.5  # with FINISH_REQUESTS_S less than the 10 s after which a supervisor kills


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """Where serving finds things, and what its time is."""

    spec: FeatureSpec
    snapshots: str
    broker: Broker
    redis_url: str = field(repr=False)  # may hold a password
    redis_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    clock: Clock = "wall"
    host: str = "127.0.0.1"  # listened on


class ServingServer:
    """Answers requests while weights and maps change beneath. Everything runs on one event loop."""

    def __init__(self, options: ServingOptions, settings: ServingSettings, metrics: ServingMetrics) -> None:
        """Load the newest snapshot. Raises NoSnapshotError, learners.snapshots.snapshot.SnapshotError."""
        self.metrics = metrics
        self._options = options
        self._settings = settings
        self._wall = options.clock == "wall"
        spec, broker = options.spec, options.broker
        loaded = load_newest(options.snapshots, spec)
        self.model = HotModel(
            loaded.model,
            spec_hash=spec.hash,
            version=loaded.version,
            watermark_ms=loaded.watermark_ms,
            freshness=Freshness(),
        )
        log.info("snapshot loaded", url=loaded.url, version=loaded.version)
        self.calibrator = HotCalibrator(settings.map_refit_interval_s, plan=spec.slice_plan)
        self._serve_line(loaded)
        encoder = Encoder(spec)
        impressions = ImpressionIds(wall_ms(), secrets.randbits(64), secrets.randbits(128))
        self.ranker = Ranker(encoder, self.model, self.calibrator, impressions)
        self.features = SessionFeatures(
            options.redis_url,
            encoder,
            broker.partitions,
            metrics,
            redis_options=options.redis_options,
            refresh_s=settings.feature_refresh_s,
            event_time=not self._wall,
            timeout_s=settings.feature_timeout_s,
        )
        self.served_log = ServedLog(broker, metrics, queue_bytes=settings.served_queue_bytes)
        self.weights = WeightsFollower(
            broker,
            metrics,
            self.model,
            lambda: load_newest(options.snapshots, spec),
            on_swap=self._show_versions,
            on_install=self._serve_line,
            load_sound=lambda rows: load_newest(options.snapshots, spec, scores=rows),
        )
        self.calibration = CalibrationFollower(broker, metrics, self.calibrator, on_swap=self._show_versions)
        self.health = Health(
            self.model,
            self.weights,
            self.calibration,
            self.features,
            self.served_log,
            metrics,
            settings.fresh_within_s if self._wall else None,
        )
        self._admission = admission_of(settings, self.served_log)
        self.service = self._scoring()
        self.figures: list[CohortFigures] = []  # made again every second
        self._stack = AsyncExitStack()

    def _scoring(self) -> ScoringService:
        settings, impressions = self._settings, self.ranker.impressions
        limits = Limits(max_ads=settings.max_ads, max_requests=settings.max_requests, max_rows=settings.max_rows)
        parser = RequestParser(limits, wall_ms if self._wall else None, lambda: int(impressions.take(1)[0]))
        return ScoringService(
            parser,
            self.ranker,
            self.features,
            self.served_log,
            self.metrics,
            wall_ms,
            self._admission.turn,
            lambda: [reason for reason in self.health.degraded() if reason != "session_store"],
        )

    async def start(self, listener: socket.socket, probe_listener: socket.socket | None = None) -> None:
        """Connect everything, then accept connections on bound sockets. Raises BrokerUnreachableError, OSError."""
        stack = self._stack
        try:
            for follower in (self.weights, self.calibration):
                await follower.start()
                self._stops_with(follower.stop, follower.topic, _STOP_PART_S)
            await self.features.start()
            self._stops_with(self.features.stop, "session features", _STOP_PART_S)
            await self.served_log.start()
            self._stops_with(partial(self.served_log.stop, _FLUSH_S), "served log", 2 * _FLUSH_S)
            background = [begin(self._tick(), "take the series' points")]
            if self._wall:
                background.append(begin(self._heartbeats(), "heartbeats"))
            self.health.background = background
            for task in background:
                stack.push_async_callback(end, task)
            host = self._options.host
            await listen(stack, self, self._settings, self._admission, host, listener, probe_listener)
        except BaseException:
            await stack.aclose()
            raise
        self._show_versions()

    def _stops_with(self, stop: Callable[[], Coroutine[Any, Any, None]], name: str, limit_s: float) -> None:
        self._stack.push_async_callback(lambda: stopped(stop(), name, limit_s))

    async def stop(self) -> None:
        """Accept nothing more, finish calls in flight, then hand every served row to the broker."""
        self.health.stopping = True
        await self._stack.aclose()

    async def rank(self, body: bytes) -> bytes:
        """Answer a rank request. Raises BadRequestError."""
        return await self.service.rank(body)

    async def score(self, body: bytes) -> bytes:
        """Answer a score call. Raises BadRequestError."""
        return await self.service.score(body)

    def unready(self) -> list[str]:
        """Why no traffic should be sent here."""
        return self.health.unready()

    def degraded(self) -> dict[str, str]:
        """What is amiss although answers are given."""
        return self.health.degraded()

    def publish_health(self) -> None:
        """Bring the metrics page up to date."""
        self.health.publish()

    def status(self) -> dict[str, Any]:
        """What the live page shows."""
        freshness = self.model.freshness
        activity = self.service.activity
        return {
            "spec": self._options.spec.name,
            "clock": self._options.clock,
            "uptime_s": round(self.health.uptime_s, 1),
            "ready": not self.unready(),
            "reasons": [*self.unready(), *self.degraded().values()],
            "model_version": self.model.version,
            "heads": self.model.head_names,
            "map_version": self.calibrator.map.version,
            "applied_ms": self.ranker.applied_ms,
            "swaps": self.model.swaps,
            "gaps": self.model.gaps,
            "freshness": quantiles_of(freshness.seconds) | {"count": freshness.seconds.count},
            "calibration_rows": self.calibrator.rows,
            "session_store": "away" if self.features.failing else "ok",
            "calls": activity.calls,
            "requests": activity.requests,
            "rows": activity.rows,
            "latency_s": activity.quantiles(),
            "quality": [one.as_json() for one in self.figures],
            "series": activity.series(),
        }

    def _serve_line(self, loaded: LoadedModel) -> None:
        """Map and model of a line are swapped together."""
        if loaded.line and loaded.line == self.calibrator.line:
            return
        try:
            self.calibrator.serve_line(loaded.line, loaded.calibration)
        except ValueError as error:
            log.warning("the line's calibration cannot be used", line=loaded.line, reason=str(error))

    def _show_versions(self) -> None:
        self.metrics.model_version.set(self.model.version)
        self.metrics.map_version.set(self.calibrator.map.version)
        self.metrics.applied_timestamp.set(self.ranker.applied_ms / 1000)

    async def _tick(self) -> None:
        """Once a second: a point of the series, and the gauges that cost something to compute."""
        while True:
            await asyncio.sleep(1.0)
            self.figures = shown(await asyncio.to_thread(self.calibrator.figures))  # requests are answered meanwhile
            publish(self.figures, self.metrics)
            freshness = quantiles_of(self.model.freshness.seconds)
            gauges = {
                "model_version": self.model.version,
                "swaps": self.model.swaps,
                "freshness_p50_s": freshness["p50"],
                "freshness_p99_s": freshness["p99"],
                **points(self.figures),
            }
            for head, mean in self.service.activity.tick(time.time(), gauges).items():
                self.metrics.predicted_mean.labels(head=head).set(mean)

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            self.service.heartbeat(wall_ms())


def wall_ms() -> int:
    """The wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000
