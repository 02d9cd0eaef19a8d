"""What the live page shows: totals, and one point a second of the recent past."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.metrics import HEADS
from serving.quantiles import NewestValues

SERIES_POINTS = 300  # five minutes
_QUANTILES = (0.5, 0.99)


class RecentActivity:
    """Counts calls, and once a second turns what was counted into a point of the series."""

    def __init__(self) -> None:
        self.latency_s = NewestValues(16_384)
        self.requests = 0
        self.rows = 0
        self.calls = 0
        self._points: deque[Mapping[str, float | int | None]] = deque(maxlen=SERIES_POINTS)
        self._latencies: list[float] = []
        self._p_sums: dict[str, float] = {}
        self._before = (0, 0)
        self._at: float | None = None

    def answered(self, requests: int, rows: int, p_sums: Mapping[str, float], seconds: float) -> None:
        """A call of ``requests`` requests and ``rows`` rows was answered in ``seconds``; sums of p by head."""
        self.calls += 1
        self.requests += requests
        self.rows += rows
        for head, p_sum in p_sums.items():
            self._p_sums[head] = self._p_sums.get(head, 0.0) + p_sum
        self._latencies.append(seconds)
        self.latency_s.observe(seconds)

    def tick(self, now_s: float, gauges: Mapping[str, float | int | None]) -> dict[str, float]:
        """Close the point of the time since the last tick; by head the mean probability answered in it, if any was.

        ``gauges`` are values as of now that belong to the point.
        """
        span = 1.0 if self._at is None else max(now_s - self._at, 1e-3)
        requests, rows = self.requests - self._before[0], self.rows - self._before[1]
        means = {head: p_sum / rows for head, p_sum in self._p_sums.items()} if rows else {}
        low, high = np.quantile(self._latencies, _QUANTILES).tolist() if self._latencies else (None, None)
        self._points.append(
            {
                "at_s": round(now_s, 3),
                "requests_per_s": round(requests / span, 2),
                "rows_per_s": round(rows / span, 2),
                "latency_p50_s": low,
                "latency_p99_s": high,
                **{f"{head}_predicted_mean": means.get(head) for head in HEADS},
                **gauges,
            }
        )
        self._at, self._before = now_s, (self.requests, self.rows)
        self._latencies, self._p_sums = [], {}
        return means

    def series(self) -> dict[str, list[Any]]:
        """The points as columns, oldest first."""
        names = self._points[-1].keys() if self._points else ()
        return {name: [point.get(name) for point in self._points] for name in names}

    def quantiles(self) -> dict[str, float | None]:
        """p50 and p99 of the newest calls' seconds."""
        return quantiles_of(self.latency_s)


def quantiles_of(values: NewestValues) -> dict[str, float | None]:
    """p50 and p99, null before the first observation."""
    found = values.quantiles(_QUANTILES)
    return {"p50": found[0], "p99": found[1]} if found else {"p50": None, "p99": None}
