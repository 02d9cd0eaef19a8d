"""The calibration core of one examples partition: examples as they were served, by head, and the state to publish."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from calibration.delay_prior import CONVERSION_PRIOR
from calibration.head import CONVERSION_PACE, HeadCalibration, HeadRows
from calibration.slices import SlicePlan
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.records.examples import ExampleRows
from stream.records.validity import possible
from stream.records.wire import CalibrationRecord

_REMEMBERED_CONVERSIONS = 2_048  # impressions, 16 kB of a state: a click's second conversion comes soon after its first


class PartitionCalibrator:
    """Counts exposures, clicks and conversions with what was served: logit before the map, p after it.

    The click head's exposures are displays, the conversion head's are clicks, at the time of the click; its events are
    their first conversions. Rows that a model without a conversion head served are none of its exposures.
    A map is fitted to what it is applied to. Versions of one line share it, each row under the version that scored it.
    When the first row of a newer line comes, the maps' evidence starts again; what the old line still has to say counts
    for the delays and the instruments only.

    Parameters
    ----------
    publish_interval_s : event time between two records.
    record : the newest calibration record of the partition, to go on after it.
    plan : slices that have a correction of their own. Raises ValueError for a record of other slices.
    """

    def __init__(
        self,
        partition: int,
        config: CalibratorConfig,
        publish_interval_s: float,
        record: CalibrationRecord | None = None,
        *,
        plan: SlicePlan | None = None,
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
        self.rows = record.rows if record else 0
        self.line = record.line if record else 0
        self.newest_line = self.line  # that has begun to learn, as far as is known; set from outside
        self.rejected_rows = 0
        plan = plan or SlicePlan()
        self.clicks = HeadCalibration(plan, config)
        conversions = (plan, config.of_conversions(), CONVERSION_PRIOR, CONVERSION_PACE)
        self.conversions = HeadCalibration(*conversions)
        self._converted: dict[int, None] = {}  # impressions, in the order of their first conversion
        if record:
            self.clicks = HeadCalibration.from_bytes(record.state, plan, config)
        if record and record.conversion_state:
            self.conversions = HeadCalibration.from_bytes(record.conversion_state, *conversions)
            self._converted = dict.fromkeys(np.frombuffer(record.converted, "<u8").tolist())
        self._interval_ms = publish_interval_s * 1000.0
        self._published_ms = self.watermark_ms
        self._changed = False

    def step(self, rows: ExampleRows, offset: int, watermark_ms: int) -> None:
        """Count the rows of the record at ``offset``; a record that was counted before changes nothing.

        Rows whose logit is not finite, or p no probability, have no bin: they are left out and counted in
        ``rejected_rows``, as are those that no join has written.
        """
        if offset < self.next_offset:
            return
        self.next_offset = offset + 1
        sound = possible(rows)
        self.rejected_rows += len(rows) - len(sound)
        rows = sound
        counted = (rows.kind == EXPOSURE) | (rows.kind == CLICK)
        finite = np.isfinite(rows.logit) & (rows.p >= 0) & (rows.p <= 1)  # false for NaN
        self.rejected_rows += int(np.count_nonzero(counted & ~finite))
        exposed, clicked = (np.flatnonzero(finite & (rows.kind == kind)) for kind in (EXPOSURE, CLICK))
        if self.newest_line > self.line and (rows.model_version[exposed] >= self.newest_line).any():
            self.line = self.newest_line
            for head in (self.clicks, self.conversions):
                if head.exposures:  # else there is nothing of another line
                    head.begin_line()
        on_line = rows.model_version >= self.line
        self.clicks.expose(self._served(rows, exposed), on_line[exposed])
        self.clicks.happen(self._served(rows, clicked), rows.delay_ms[clicked], on_line[clicked])
        self._count_conversions(rows, on_line)
        self.rows += len(exposed) + len(clicked)
        self._changed |= bool(len(exposed) or len(clicked))
        if watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms
            self.clicks.advance(watermark_ms)
            if self.conversions.exposures:
                self.conversions.advance(watermark_ms)

    def _count_conversions(self, rows: ExampleRows, on_line: NDArray[np.bool_]) -> None:
        finite = np.isfinite(rows.conversion_logit) & (rows.conversion_p >= 0) & (rows.conversion_p <= 1)
        clicked = np.flatnonzero(finite & (rows.kind == CLICK))
        converted = np.flatnonzero(finite & (rows.kind == CONVERSION))
        converted = converted[self._first_of_click(rows.impression_id[converted])]
        self.conversions.expose(self._clicked(rows, clicked, rows.known_ms[clicked]), on_line[clicked])
        clicked_ms = rows.known_ms[converted] - rows.delay_ms[converted]
        happened = self._clicked(rows, converted, clicked_ms)
        self.conversions.happen(happened, rows.delay_ms[converted], on_line[converted])
        self._changed |= bool(len(clicked) or len(converted))

    def _first_of_click(self, impressions: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(B,) which conversions are the first of their click, as far as is remembered."""
        first = np.zeros(len(impressions), np.bool_)
        for at, impression in enumerate(impressions.tolist()):
            first[at] = impression not in self._converted
            self._converted[impression] = None
        for impression in list(self._converted)[:-_REMEMBERED_CONVERSIONS]:
            del self._converted[impression]
        return first

    def log_cut(self, offset: int) -> None:
        """What comes from ``offset`` on was not counted; what the log held there before was, and stays so."""
        self.next_offset = min(self.next_offset, offset)

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
            rows=self.rows,
            watermark_ms=self.watermark_ms,
            state=self.clicks.to_bytes(),
            next_offset=self.next_offset,
            line=self.line,
            conversion_state=self.conversions.to_bytes() if self.conversions.exposures else b"",
            converted=np.array(list(self._converted), "<u8").tobytes(),
        )

    def _served(self, rows: ExampleRows, at: NDArray[np.intp]) -> HeadRows:
        paths = self.clicks.plan.paths(rows.ids[at], rows.dense[at])
        return HeadRows(rows.ts_ms[at], paths, rows.logit[at], rows.p[at])

    def _clicked(self, rows: ExampleRows, at: NDArray[np.intp], clicked_ms: NDArray[np.int64]) -> HeadRows:
        paths = self.conversions.plan.paths(rows.ids[at], rows.dense[at])
        return HeadRows(clicked_ms, paths, rows.conversion_logit[at], rows.conversion_p[at])
