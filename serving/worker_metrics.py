"""Progressive quality for the live page, read from the learner's own metrics."""

from __future__ import annotations

import math
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

_SHOWN: Final = {
    "millstream_progressive_auc_ratio": "auc",
    "millstream_progressive_log_loss": "log_loss",
    "millstream_progressive_normalized_entropy_ratio": "normalized_entropy",
    "millstream_progressive_observed_over_expected_ratio": "served_observed_over_expected",
}
_TIMEOUT_S = 0.5


class WorkerQuality:
    """The newest progressive metrics of the worker at ``url`` (its /metrics); none without a url or an answer.

    Only the live page hangs on them, so a worker that does not answer is no fault of serving.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self.values: dict[str, float] = {}

    async def read(self) -> None:
        """Ask the worker once."""
        if self._url is None:
            return
        try:
            timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(self._url) as answer:
                self.values = progressive(await answer.text())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            self.values = {}


def progressive(text: str) -> dict[str, float]:
    """The finite progressive metrics in a Prometheus exposition."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {_SHOWN[s.name]: s.value for s in samples if s.name in _SHOWN and math.isfinite(s.value)}
