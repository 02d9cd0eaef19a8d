"""How examples were learned when an impression waited for its label, as a stage between join and learner."""

from __future__ import annotations

import numpy as np

from learners.examples.kinds import CLICK, EXPOSURE
from stream.records.examples import ExampleRows, concat


class Settled:
    """A clicked impression is learned when it is clicked, any other when ``window_s`` has passed without a click."""

    def __init__(self, window_s: float = 600.0) -> None:
        self._window_ms = round(window_s * 1000)
        self._waiting: ExampleRows | None = None

    def __call__(self, rows: ExampleRows | None, watermark_ms: int) -> ExampleRows | None:
        """The examples that are learned now instead of ``rows``."""
        if rows is None or self._waiting is None:
            self._waiting = rows if self._waiting is None else self._waiting
        else:
            self._waiting = concat([self._waiting, rows])
        if self._waiting is None:
            return None
        waiting, exposed = self._waiting, self._waiting.kind == EXPOSURE
        clicked = np.isin(waiting.impression_id, waiting.impression_id[waiting.kind == CLICK])
        now = clicked | ~exposed | (waiting.ts_ms + self._window_ms <= watermark_ms)
        self._waiting = waiting.take(~now)
        return waiting.take(now) if now.any() else None
