"""The map in use: every partition's calibration state, added up and fitted on a cadence of event time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import structlog

from calibration.bins import BIN_LIMIT
from calibration.delay_prior import CONVERSION_PRIOR
from calibration.distrust import check_finite, unreadable_is_a_value_error
from calibration.head import CONVERSION_PACE, HeadCalibration
from calibration.head_wire import MOST_LOG_ODDS
from calibration.instruments import figures
from calibration.merged import map_of
from calibration.slice_map import SliceMap
from calibration.slices import SlicePlan
from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD
from serving.cohorts import ALL, WINDOWS_OF, CohortFigures, sliced
from serving.metrics import VARIANT
from stream.records.wire import CalibrationRecord

log = structlog.get_logger()

_NO_MAP = (ValueError, ArithmeticError, IndexError, MemoryError)  # what a fit to hostile sums may raise


class HeadStates(NamedTuple):
    """What a record holds of one partition."""

    clicks: HeadCalibration
    conversions: HeadCalibration | None  # None: no model with that head has served
    magnitude: float  # the largest of their sums


class HotCalibrator:
    """Holds the newest state of each examples partition and the maps fitted to their sum, one of each head.

    The version of a map is the sum of the versions of the states in it: every serving process that holds the same
    states answers with the same map under the same version. A state belongs to a model line, and only those of the
    line that is served make the maps: a new base swaps both with `serve_line`. Single-threaded, as `HotModel`.

    Parameters
    ----------
    refit_interval_s : event time between two fits (a fit takes a few ms, and states come from every partition).
    plan : the feature spec's slices; a state of others is refused.
    """

    def __init__(self, refit_interval_s: float = 1.0, *, plan: SlicePlan | None = None) -> None:
        if refit_interval_s < 0:
            raise ValueError(
                f"refit_interval_s={refit_interval_s} must not be negative: the map would never move. Use 0 to refit "
                "at every change."
            )
        self.plan = plan or SlicePlan()
        self.map = SliceMap(self.plan)
        self.conversion_map = SliceMap(self.plan)  # for P(conversion | click)
        self._refit_interval_ms = refit_interval_s * 1000.0
        self.line = 0  # the served model's; 0: unknown, every state fits
        self._brought: HeadCalibration | None = None
        self._records: dict[int, CalibrationRecord] = {}
        self._states: dict[int, HeadStates] = {}
        self._of_line: dict[tuple[int, int], tuple[int, HeadStates]] = {}  # line, partition → version, states
        self._fitted_at_ms: tuple[float, float] = (-np.inf, -np.inf)
        self._fitted_partitions = 0
        self._stale = False
        self._figures: list[CohortFigures] | None = []

    @property
    def watermark_ms(self) -> int | None:
        """The least watermark of the partitions heard, or None before the first."""
        return min((record.watermark_ms for record in self._records.values()), default=None)

    @property
    def rows(self) -> int:
        """Examples that the states were made of."""
        return sum(record.rows for record in self._records.values())

    def serve_line(self, line: int, brought: bytes | None = None) -> None:
        """The model of another line is served from now on, with the map that it brought and what is known of it since.

        brought : the state of the click head that its base's replay has counted, of
            `learners.snapshots.snapshot.Snapshot.calibration`. Raises ValueError for one that is damaged or of other
            slices; the line is served without it then.
        """
        self.line, self._brought = line, None
        self._of_line = {key: states for key, states in self._of_line.items() if key[0] == 0 or key[0] >= line}
        try:
            if brought is not None:
                self._brought = HeadCalibration.from_bytes(brought, self.plan)
        finally:
            self._refit()

    def decoded(self, record: CalibrationRecord) -> HeadStates:
        """The states of a record, for `offer`; milliseconds of work that changes nothing here, fit for a thread.

        Raises ValueError for a state that is damaged, of other slices, or that no sound map can be made of.
        """
        with unreadable_is_a_value_error("what a calibration state counts"):
            return self._decoded(record)

    def _decoded(self, record: CalibrationRecord) -> HeadStates:
        clicks = HeadCalibration.from_bytes(record.state, self.plan)
        conversions = None
        if record.conversion_state:
            conversions = HeadCalibration.from_bytes(
                record.conversion_state, self.plan, prior=CONVERSION_PRIOR, pace=CONVERSION_PACE
            )
        for one in filter(None, (clicks, conversions)):
            _sound(map_of([one]))
        return HeadStates(clicks, conversions, max(one.magnitude() for one in (clicks, conversions) if one))

    def offer(self, record: CalibrationRecord, states: HeadStates | None = None) -> bool:
        """Take a partition's state, decoded already or not; False when a newer one of that partition was taken.

        Raises ValueError for a state that is damaged or of other slices; the earlier state stays.
        """
        known = self._records.get(record.partition)
        if known is not None and (record.version, record.watermark_ms) <= (known.version, known.watermark_ms):
            return False
        states = self.decoded(record) if states is None else states
        before = dict(self._records), dict(self._states), dict(self._of_line)
        self._states[record.partition] = states
        self._records[record.partition] = record
        self._of_line[record.line, record.partition] = (record.version, states)
        try:
            self._check_sums()
            self._stale = True
            self._refit_when_due()
        except _NO_MAP as error:
            self._records, self._states, self._of_line = before
            raise ValueError(f"the state of partition {record.partition} makes no map ({error}): drop it.") from error
        self._figures = None
        return True

    def _check_sums(self) -> None:
        """Raise ValueError where the states' sums, added up over partitions, could wrap."""
        magnitude = sum(one.magnitude for one in self._states.values())
        if not magnitude < BIN_LIMIT:
            raise ValueError(f"sums of {magnitude:g} over all partitions do not stay below {BIN_LIMIT}")

    def figures(self) -> Sequence[CohortFigures]:
        """How good served p was, by cohort of display time, in windows that end now or, mature, a click window ago.

        Fit for a thread beside `offer`: a state that was taken is never changed.
        """
        if self._figures is None:
            states = list(self._states.values())
            conversions = [one.conversions for one in states if one.conversions is not None]
            try:
                self._figures = [
                    *_figures(CLICK_HEAD, [one.clicks for one in states], self.plan),
                    *_figures(CONVERSION_HEAD, conversions, self.plan),
                ]
            except _NO_MAP as error:
                log.error("no figures can be made of the calibration's states", exc_info=error)
                self._figures = []  # until the next state
        return self._figures

    def _refit_when_due(self) -> None:
        """Fit when the slowest or the fastest partition has advanced: an idle one must not freeze the map."""
        watermarks = [record.watermark_ms for record in self._records.values()]
        reached = (min(watermarks), max(watermarks))
        advance_ms = max(now - fitted for now, fitted in zip(reached, self._fitted_at_ms, strict=True))
        newcomers = len(self._records) > self._fitted_partitions
        if not self._stale or (advance_ms < self._refit_interval_ms and not newcomers):
            return
        self._refit()
        self._fitted_at_ms, self._fitted_partitions = reached, len(self._records)

    def _refit(self) -> None:
        served = sorted(key for key in self._of_line if self.line == 0 or key[0] in (0, self.line))
        newest = {partition: (line, partition) for line, partition in served}  # a line that is known goes before 0
        newest_states = [self._of_line[newest[partition]] for partition in sorted(newest)]
        version = sum(state_version for state_version, _ in newest_states)
        clicks = self._click_map([states.clicks for _, states in newest_states], version)
        conversions = [states.conversions for _, states in newest_states if states.conversions is not None]
        self.conversion_map = _sound(map_of(conversions, version)) if conversions else SliceMap(self.plan)
        self.map = clicks
        self._stale = False

    def _click_map(self, states: Sequence[HeadCalibration], version: int) -> SliceMap:
        """The map of these states and of what the base brought, which is dropped where it alone is in the way."""
        if self._brought is None:
            return _sound(map_of(states, version))
        try:
            return _sound(map_of([self._brought, *states], version))
        except _NO_MAP as error:
            found = _sound(map_of(states, version))
            log.warning(
                "the calibration that the base brought makes no map with the stream's states, which go on without it",
                line=self.line, reason=str(error), remedy="train the base with the workers' settings",
            )  # fmt: skip
            self._brought = None
            return found


def _sound(found: SliceMap) -> SliceMap:
    """Raise ValueError for a map that would answer no number, or push every p to its end."""
    for name, numbers in (("knots", found.curve.log_odds), ("offsets", found.offsets), ("shift", found.shift)):
        check_finite(name, numbers, MOST_LOG_ODDS)
    return found


def _figures(head: str, states: Sequence[HeadCalibration], plan: SlicePlan) -> list[CohortFigures]:
    """The figures of one head over all partitions."""
    if not states:
        return []
    found = figures(
        [(state.instruments, state.law) for state in states],
        plan,
        click_window_s=states[0].config.click_window_s,
        windows_s=WINDOWS_OF[head],
        sliced=partial(sliced, head),
    )
    return [
        CohortFigures(
            head=head,
            maturity=one.period,
            window_s=one.window_s,
            slice=ALL if one.slice == "all" else f"{one.slice}={one.value}",
            variant=VARIANT,
            exposures=one.exposures,
            observed=one.clicks,
            expected=one.expected,
            log_loss=one.log_loss,
            normalized_entropy=one.normalised_entropy,
            auc=one.auc,
        )
        for one in found
    ]
