"""The calibration core of one examples partition: counts labels at the served logits, gives the state to publish."""

from __future__ import annotations

import numpy as np

from calibration.bins import BinState
from calibration.stream import CalibratorConfig, StreamingCalibrator
from learners.kinds import CONVERSION, CORRECTION
from stream.examples import ExampleRows
from stream.records import CalibrationRecord


class PartitionCalibrator:
    """Counts settled examples; a correction takes back the negative that was counted and counts a click instead.

    The logit is the one that serving logged, before calibration: the map is fitted to what it is applied to. Several
    model versions share the map, each row under the version that scored it.

    Parameters
    ----------
    record : the newest calibration record of the partition, to go on after it.
    publish_interval_s : event time between two records.
    """

    def __init__(
        self,
        partition: int,
        config: CalibratorConfig,
        publish_interval_s: float,
        record: CalibrationRecord | None = None,
    ) -> None:
        if not publish_interval_s > 0:
            raise ValueError(
                f"publish_interval_s={publish_interval_s} must be positive: there would be a record an example. "
                "Set MILLSTREAM_PUBLISH_INTERVAL_S; 1 is the default."
            )
        self.partition = partition
        self.next_offset = record.next_offset if record else 0
        self.watermark_ms = record.watermark_ms if record else 0
        self.version = record.version if record else 0
        self.rejected_rows = 0
        self._interval_ms = publish_interval_s * 1000.0
        self._published_ms = self.watermark_ms
        if record:
            self._calibrator = StreamingCalibrator.resumed(BinState.from_bytes(record.state), record.rows, config)
        else:
            self._calibrator = StreamingCalibrator(config)
        self._changed = False

    def observed_over_expected(self) -> float:
        """Clicks over the clicks that the raw logits promised, of the rows held."""
        return self._calibrator.state.observed_over_expected()

    def step(self, rows: ExampleRows, offset: int, watermark_ms: int) -> None:
        """Count the rows of the record at ``offset``; a record that was counted before changes nothing.

        Rows whose logit is not finite have no bin: they are left out and counted in ``rejected_rows``.
        """
        if offset < self.next_offset:
            return
        self.next_offset = offset + 1
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        finite = np.isfinite(rows.logit)
        keep = (rows.kind != CONVERSION) & finite
        self.rejected_rows += int(np.count_nonzero(~finite))
        if keep.any():
            kept = rows.take(keep)
            correction = kept.kind == CORRECTION
            self._calibrator.update(kept.logit, kept.label.astype(np.bool_), retract_mask=correction)
            self._changed = True

    def skip(self, offset: int) -> None:
        """Pass over a record that cannot be read."""
        self.next_offset = max(self.next_offset, offset + 1)

    def take_publication(self, *, at_once: bool = False) -> CalibrationRecord | None:
        """The state when ``publish_interval_s`` of event time has passed (or ``at_once`` and it changed), else None."""
        due = self.watermark_ms >= self._published_ms + self._interval_ms
        if not due and not (at_once and self._changed):
            return None
        self.version += self._changed
        self._published_ms, self._changed = self.watermark_ms, False
        return CalibrationRecord(
            partition=self.partition,
            version=self.version,
            rows=self._calibrator.rows_seen,
            watermark_ms=self.watermark_ms,
            state=self._calibrator.state.to_bytes(),
            next_offset=self.next_offset,
        )
