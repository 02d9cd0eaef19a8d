"""Whether serving can answer, and how well: what takes it out of the rotation, and what only its answers say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from serving.features import SessionFeatures
from serving.followers import CalibrationFollower, WeightsFollower
from serving.metrics import DEGRADED, ServingMetrics
from serving.model import HotModel
from serving.served_log import ServedLog


class Health:
    """Looks at the parts of a serving process.

    What all processes of a fleet share (a silent learner, a damaged record, a broker that is away) leaves every one of
    them able to answer with its last good version: taking them out of the rotation would turn old answers into none.

    Parameters
    ----------
    fresh_within_s : a learner not heard for so long is silent; None on the log's clock, where time stands still.
    """

    def __init__(
        self,
        model: HotModel,
        weights: WeightsFollower,
        calibration: CalibrationFollower,
        features: SessionFeatures,
        served_log: ServedLog,
        metrics: ServingMetrics,
        fresh_within_s: float | None,
    ) -> None:
        self.stopping = False
        self.background: Sequence[asyncio.Task[None]] = ()
        self._model = model
        self._weights = weights
        self._calibration = calibration
        self._features = features
        self._served_log = served_log
        self._gauges = {reason: metrics.degraded.labels(reason) for reason in DEGRADED}
        self._fresh_within_s = fresh_within_s
        self._started_at = time.monotonic()

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started_at

    def unready(self) -> list[str]:
        """Why no traffic should be sent here: nothing would be answered, or with what others have left behind."""
        reasons = ["serving is stopping"] if self.stopping else []
        if (unsound := self._model.unsound) is not None:
            reasons.append(f"{unsound.detail}; version {self._model.version} answers until a newer sound one comes")
        reading = (one for one in (self._weights, self._calibration) if not one.caught_up.is_set() and not one.ended)
        return [*reasons, *(f"{one.topic} is still being read from where the snapshot ends" for one in reading)]

    def degraded(self) -> dict[str, str]:
        """What is amiss while answers are given, by its word on the metrics page."""
        found = {
            "learner_silent": self._silence(),
            "weights_gap": f"the versions after {self._model.version} are missing: {self._weights.rejection}"
            if self._model.lost
            else None,
            "weights_rejected": f"weights cannot be used: {self._weights.rejection}"
            if self._weights.rejection is not None and not self._model.lost
            else None,
            "task_ended": "; ".join(self._ended()) or None,
            "session_store": "the session store does not answer: answers are made without session features"
            if self._features.failing
            else None,
            "served_log": self._served_log.trouble,
        }
        return {reason: text for reason, text in found.items() if text is not None}

    def publish(self) -> None:
        """Bring the metrics page up to date."""
        amiss = self.degraded()
        for reason, gauge in self._gauges.items():
            gauge.set(reason in amiss)

    def _silence(self) -> str | None:
        if self._fresh_within_s is None:
            return None
        silent_s = time.monotonic() - (self._weights.heard_at or self._started_at)
        if silent_s <= self._fresh_within_s:
            return None
        return (
            f"the learner has been silent for {silent_s:.0f} s, more than MILLSTREAM_FRESH_WITHIN_S="
            f"{self._fresh_within_s:g}: the model grows old"
        )

    def _ended(self) -> list[str]:
        ended = [f"the task to {task.get_name()} has ended" for task in self.background if task.done()]
        if self._features.ended:
            ended.append("the task that refreshes shared counters has ended")
        followers = (one for one in (self._weights, self._calibration) if one.ended)
        return [*ended, *(f"the task that follows {one.topic} has ended" for one in followers)]
