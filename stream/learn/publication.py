"""Which version serving holds, and what the next delta brings it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.delta import Delta
from learners.deepfm.model import DeepFM
from learners.examples.kinds import CLICK
from stream.records.examples import ExampleRows


class Publication:
    """Deltas of a model when ``interval_s`` of event time has passed; heartbeats where nothing changed.

    Parameters
    ----------
    version : the one that serving holds.
    watermark_ms : the time of the last publication.
    """

    def __init__(self, model: DeepFM, version: int, watermark_ms: int, *, interval_s: float) -> None:
        self.model = model
        self.version = version
        self._interval_ms = interval_s * 1000.0
        self._published_ms = watermark_ms
        self._clicks_ms: list[NDArray[np.int64]] = []

    def learned(self, rows: ExampleRows) -> None:
        """Rows that the next delta brings: of its clicks it says when the broker received them."""
        fresh = (rows.kind == CLICK) & (rows.click_produced_ms > 0)
        self._clicks_ms.append(rows.click_produced_ms[fresh])

    def go_on_from(self, version: int, *, clicks_are_news: bool) -> None:
        """What a run before this one published last: the next delta leads from there."""
        self.version = version
        if not clicks_are_news:
            self._clicks_ms = []

    def take(
        self, version: int, watermark_ms: int, newest_event_ms: int, *, changed: bool, at_once: bool
    ) -> Delta | None:
        """The delta to ``version``, a heartbeat when the model did not change; None before the interval has passed.

        ``at_once``: a change need not wait for it.
        """
        due = watermark_ms >= self._published_ms + self._interval_ms
        if not due and not (at_once and changed):
            return None
        self._published_ms = watermark_ms
        if not changed:
            return self.heartbeat(watermark_ms, newest_event_ms)
        parent, self.version = self.version, version
        clicks, self._clicks_ms = self._clicks_ms, []
        return self.model.changes(
            version=version,
            parent=parent,
            watermark_ms=watermark_ms,
            newest_event_ms=newest_event_ms,
            clicks_produced_ms=np.concatenate(clicks) if clicks else (),
        )

    def heartbeat(self, watermark_ms: int, newest_event_ms: int) -> Delta:
        """Nothing new, but that time has passed."""
        return Delta.heartbeat(
            spec_hash=self.model.shape.spec_hash,
            version=self.version,
            watermark_ms=watermark_ms,
            newest_event_ms=newest_event_ms,
        )
