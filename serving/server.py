"""One serving process: its parts, how they start, and how they stop without losing a served row."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from aiohttp import web

from learners.features.encode import Encoder
from learners.features.spec import FeatureSpec
from serving.calibrator import HotCalibrator
from serving.cohorts import CohortFigures, points, publish, shown
from serving.features import SessionFeatures
from serving.followers import CalibrationFollower, WeightsFollower
from serving.freshness import Freshness
from serving.http import application
from serving.impression_ids import ImpressionIds
from serving.messages import Limits, RequestParser
from serving.metrics import ServingMetrics
from serving.model import HotModel
from serving.ranking import Ranker
from serving.served_log import ServedLog
from serving.service import ScoringService
from serving.settings import ServingSettings
from serving.snapshots import LoadedModel, load_newest
from serving.status import quantiles_of
from serving.tasks import begin, end
from stream.kafka.broker import Broker

log = structlog.get_logger()

Clock = Literal["wall", "log"]
_FINISH_REQUESTS_S = 4.0
_FLUSH_S = 4.0  # together less than the 10 s after which a supervisor kills


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """Where serving finds things, and what its time is."""

    spec: FeatureSpec
    snapshots: str
    broker: Broker
    redis_url: str = field(repr=False)  # may hold a password
    redis_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    clock: Clock = "wall"


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
        impressions = ImpressionIds(wall_ms(), random.SystemRandom().getrandbits(64))
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
        limits = Limits(max_ads=settings.max_ads, max_requests=settings.max_requests)
        parser = RequestParser(limits, wall_ms if self._wall else None, lambda: int(impressions.take(1)[0]))
        self.service = ScoringService(parser, self.ranker, self.features, self.served_log, metrics, wall_ms)
        self.figures: list[CohortFigures] = []  # made again every second
        self._stopping = False
        self._background: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._started_at = time.monotonic()

    async def start(self, listener: socket.socket) -> None:
        """Connect everything, then accept connections on a bound socket. Raises BrokerUnreachableError, OSError."""
        stack = self._stack
        try:
            await self.served_log.start()
            stack.push_async_callback(self.served_log.stop, _FLUSH_S)
            await self.features.start()
            stack.push_async_callback(self.features.stop)
            for follower in (self.weights, self.calibration):
                await follower.start()
                stack.push_async_callback(follower.stop)
            self._background = [begin(self._tick(), "take the series' points")]
            if self._wall:
                self._background.append(begin(self._heartbeats(), "heartbeats"))
            for task in self._background:
                stack.push_async_callback(end, task)
            runner = web.AppRunner(application(self), access_log=None, shutdown_timeout=_FINISH_REQUESTS_S)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.SockSite(runner, listener).start()
        except BaseException:
            await stack.aclose()
            raise
        self._show_versions()

    async def stop(self) -> None:
        """Accept nothing more, finish calls in flight, then hand every served row to the broker."""
        self._stopping = True
        await self._stack.aclose()

    async def rank(self, body: bytes) -> bytes:
        """Answer a rank request. Raises BadRequestError."""
        return await self.service.rank(body)

    async def score(self, body: bytes) -> bytes:
        """Answer a score call. Raises BadRequestError."""
        return await self.service.score(body)

    def unready(self) -> list[str]:
        """Why no traffic should be sent here; empty when the model is loaded and fresh and what is served is logged."""
        reasons = ["serving is stopping"] if self._stopping else []
        reasons += [f"the task to {task.get_name()} has ended" for task in self._background if task.done()]
        if self.features.ended:
            reasons.append("the task that refreshes shared counters has ended")
        for follower in (self.weights, self.calibration):
            if follower.ended:
                reasons.append(f"the task that follows {follower.topic} has ended")
            elif not follower.caught_up.is_set():
                reasons.append(f"{follower.topic} is still being read from where the snapshot ends")
        if (unsound := self.model.unsound) is not None:
            reasons.append(f"{unsound.detail}; version {self.model.version} answers until a newer sound one comes")
        if self.model.lost:
            reasons.append(f"the versions after {self.model.version} are missing: {self.weights.rejection}")
        elif self.weights.rejection is not None:
            reasons.append(f"weights cannot be used: {self.weights.rejection}")
        if self._wall:
            silent_s = time.monotonic() - (self.weights.heard_at or self._started_at)
            if silent_s > self._settings.fresh_within_s:
                reasons.append(
                    f"the learner has been silent for {silent_s:.0f} s, more than "
                    f"MILLSTREAM_FRESH_WITHIN_S={self._settings.fresh_within_s:g}: the model grows old"
                )
        trouble = self.served_log.trouble
        return [*reasons, trouble] if trouble else reasons

    def status(self) -> dict[str, Any]:
        """What the live page shows."""
        freshness = self.model.freshness
        activity = self.service.activity
        return {
            "spec": self._options.spec.name,
            "clock": self._options.clock,
            "uptime_s": round(time.monotonic() - self._started_at, 1),
            "ready": not self.unready(),
            "reasons": self.unready(),
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
