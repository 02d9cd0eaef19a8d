"""A folder that an agent writes to beside its work: full, read-only or away, it is tried again, and nothing ends."""

from __future__ import annotations

import time
from typing import Literal

import structlog

from stream.metrics import WorkerMetrics

RETRY_S = 5.0
"""Between two tries of a folder that failed."""

_LOGGED_EVERY_S = 60.0
_REMEDY = {
    "snapshots": "free space in it or make it writable. The model learns, publishes and is served meanwhile; a restart "
    "learns again what came since the last snapshot, as long as the topics hold it",
    "archive": "free space in it or make it writable. The examples wait in their topic, as long as it holds them, and "
    "are archived then",
}
_log = structlog.get_logger(__name__)


class StoreHealth:
    """Whether the last write to a folder worked; says so in metrics, log and `/healthz`."""

    def __init__(self, store: Literal["snapshots", "archive"], url: str, metrics: WorkerMetrics) -> None:
        self._store, self._url, self._metrics = store, url, metrics
        self._failing = False
        self._retry_s = self._log_s = 0.0  # of the clock

    @property
    def failing(self) -> bool:
        """Whether the last write failed."""
        return self._failing

    @property
    def may_write(self) -> bool:
        """Whether it is time to try: always, but for a while after a failure."""
        return not self._failing or time.monotonic() >= self._retry_s

    def failed(self, error: BaseException) -> None:
        """A write failed; nothing of it was taken for done."""
        now_s = time.monotonic()
        reason = f"{type(error).__name__}: {error!s:.300}"
        if not self._failing or now_s >= self._log_s:
            self._log_s = now_s + _LOGGED_EVERY_S
            _log.error(
                f"the {self._store} cannot be written, which is tried again", url=self._url, reason=reason,
                retry_s=RETRY_S, remedy=_REMEDY[self._store],
            )  # fmt: skip
        self._failing, self._retry_s = True, now_s + RETRY_S
        self._metrics.counter("store_failures_total", store=self._store).inc()
        self._metrics.gauge("store_failing", store=self._store).set(1)
        self._metrics.degraded[self._store] = f"{self._url} cannot be written: {reason}"

    def wrote(self) -> None:
        """A write is done."""
        if self._failing:
            _log.info(f"the {self._store} can be written again", url=self._url)
        self._failing = False
        self._metrics.gauge("store_failing", store=self._store).set(0)
        self._metrics.degraded.pop(self._store, None)
