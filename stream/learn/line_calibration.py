"""The calibration state that a new base's line brings: counted on the rows that the base is replayed on."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from calibration.head import HeadCalibration, HeadRows
from calibration.logistic import sigmoid
from calibration.slices import SlicePlan
from learners.examples.kinds import CLICK, EXPOSURE
from learners.features.rows import Rows
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows
from stream.records.examples_codec import SpecShape, decode_examples
from stream.records.validity import possible

_REMEMBERED_EXPOSURES = 500_000  # whose logits are kept for their clicks, twice as many at most


class Scorer(Protocol):
    """What scores rows before it learns them."""

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """(B,) logits, or (B, H), the click's first."""
        ...


class LineCalibration:
    """Counts replayed examples at the logits of the line that learns them, each before it was learned.

    A click counts with the logit of its exposure, as a served one does: logits of the last exposures are remembered,
    and clicks of others are left out.
    """

    def __init__(self, plan: SlicePlan, config: CalibratorConfig | None = None) -> None:
        self.head = HeadCalibration(plan, config or CalibratorConfig())
        self._watermark_ms = 0
        self._logits: dict[int, float] = {}
        self._older: dict[int, float] = {}

    def observe(self, value: bytes | None, spec: SpecShape, model: Scorer) -> None:
        """A record of the examples topic, about to be learned; one that cannot be read says nothing."""
        try:
            rows, watermark_ms = decode_examples(value, spec)
        except RecordError:
            return
        rows = possible(rows)
        shown = np.flatnonzero(rows.kind == EXPOSURE)
        logit = np.zeros(0, np.float32)
        if len(shown):
            found = model.predict_many(rows.take(shown).rows())
            logit = found if found.ndim == 1 else found[:, 0]
        self.count(rows, logit, watermark_ms)

    def count(self, rows: ExampleRows, logit: NDArray[np.float32], watermark_ms: int) -> None:
        """Examples of one step, with the logits of the exposures among them, and up to when all is known."""
        shown, clicked = np.flatnonzero(rows.kind == EXPOSURE), np.flatnonzero(rows.kind == CLICK)
        finite = np.isfinite(logit)
        shown, logit = shown[finite], logit[finite]
        self._logits.update(zip(rows.impression_id[shown].tolist(), logit.tolist(), strict=True))
        logits = [self._logits.get(one, self._older.get(one)) for one in rows.impression_id[clicked].tolist()]
        known = np.array([one is not None for one in logits], np.bool_)
        click_logits = np.array([one for one in logits if one is not None], np.float32)
        self.head.expose(self._at(rows, shown, logit))
        self.head.happen(self._at(rows, clicked[known], click_logits), rows.delay_ms[clicked[known]])
        if watermark_ms > self._watermark_ms:
            self._watermark_ms = watermark_ms
            self.head.advance(watermark_ms)
        if len(self._logits) > _REMEMBERED_EXPOSURES:
            self._older, self._logits = self._logits, {}

    def to_bytes(self) -> bytes | None:
        """The state, for the line's snapshots; None when nothing was counted."""
        return self.head.to_bytes() if self.head.exposures else None

    def _at(self, rows: ExampleRows, at: NDArray[np.intp], logit: NDArray[np.float32]) -> HeadRows:
        paths = self.head.plan.paths(rows.ids[at], rows.dense[at])
        return HeadRows(rows.ts_ms[at], paths, logit, sigmoid(logit).astype(np.float32))
