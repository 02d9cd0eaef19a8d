"""The whole calibration state of one head on one examples partition: evidence, delay law, gains, instruments.

    exposures, events ──► instruments        how good the served p was
                     ├──► delay law          what is still to come
                     ├──► evidence ──► candidate, now and then, of what came before
                     └──► gains              of candidates on what came after them: what may be applied

A head is P(event | exposure): clicks of displays, or conversions of clicks.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from calibration.bins import WEIGHT_SCALE
from calibration.cohorts import COHORT_MS, CohortTable
from calibration.config import CalibratorConfig
from calibration.delay_law import DelayLaw
from calibration.delay_prior import DelayPrior
from calibration.distrust import check_counts, unreadable_is_a_value_error
from calibration.events_ahead import Come, EventsAhead
from calibration.evidence import MapEvidence, Weighed
from calibration.fit import fit_slice_map, gain_of
from calibration.head_wire import ArrayContent, HeadContent, TrialContent, from_wire, to_wire
from calibration.instruments import KEEP_MS, Instruments
from calibration.slice_map import SliceMap
from calibration.slices import SlicePlan

_EVIDENCE_KEEP_MS: Final = 7 * 86_400_000
_TRIAL_CLICKS: Final = 20.0
RIPE_SHARE: Final = 0.5  # of the clicks: younger cohorts are all noise
_JUDGED_SHARE: Final = 0.9
_REFIT_HALF_LIVES: Final = 0.01  # of new clicks, then a candidate is fitted again


class Pace(NamedTuple):
    """How long things take that depend on the delay of a head's events, in ms."""

    shortest_trial: int  # a trial has at least so long a span of exposures,
    longest_trial: int  # and ends after this one even where few events are expected
    longest_wait: float  # for the events of a trial
    keep: int  # cohorts of the instruments


CLICK_PACE: Final = Pace(0, 60_000, 60_000.0, KEEP_MS)
CONVERSION_PACE: Final = Pace(3_600_000, 3_600_000, 21_600_000.0, 2 * 86_400_000 + 7_200_000)
"""Conversions come hours after their click: trials of an hour, of which six and one at most are open."""


class Trial(NamedTuple):
    """A candidate and the displays that it is judged on, all later than what it was fitted to."""

    from_ms: int
    until_ms: int  # 0: still open
    candidate: SliceMap


class HeadRows(NamedTuple):
    """B rows of the two kinds that a head is made of."""

    ts_ms: NDArray[np.int64]  # (B,) of the exposure
    paths: NDArray[np.int64]  # (B,)
    logit: NDArray[np.float32]  # (B,) raw
    p: NDArray[np.float32]  # (B,) served

    def take(self, index: NDArray[np.intp] | slice) -> HeadRows:
        """Those at an index."""
        return HeadRows(self.ts_ms[index], self.paths[index], self.logit[index], self.p[index])


class HeadCalibration:
    """See the module. Pure: its only clock is the watermark that `advance` is given.

    Parameters
    ----------
    plan : how rows are cut into slices.
    prior : of the delay law.
    pace : of its trials and instruments.
    """

    def __init__(
        self, plan: SlicePlan, config: CalibratorConfig, prior: DelayPrior | None = None, pace: Pace = CLICK_PACE
    ) -> None:
        self.plan, self.config, self.pace = plan, config, pace
        self.law = DelayLaw(config.click_horizon_s, prior=prior)
        self.evidence, self.instruments = MapEvidence(), Instruments()
        self.gains = CohortTable(2)  # nats, clicks; bin 0: a path's offsets, bin 1: the curve
        self.exposures = 0
        self.trials: list[Trial] = []
        self._fitted_at_events = 0
        self.events = 0
        self._first_ms = 0  # the first exposure's time; events of earlier ones, which this never saw, do not count
        self._ahead = EventsAhead()

    def begin_line(self) -> None:
        """Another model line serves: what its map is fitted to begins again, delays and instruments go on."""
        since_ms, now_ms = self.evidence.table.since_ms, self.evidence.table.now_ms
        self.evidence, self.gains, self.trials = MapEvidence(), CohortTable(2), []
        self.evidence.table.since_ms, self.evidence.table.now_ms = since_ms, now_ms
        self.gains.now_ms = now_ms
        self._fitted_at_events = self.events

    def expose(self, rows: HeadRows, of_line: NDArray[np.bool_] | None = None) -> None:
        """Exposures, in any order; only those ``of_line``, (B,), are evidence for the map."""
        if not len(rows.ts_ms):
            return
        if not self.exposures:
            self._first_ms = int(rows.ts_ms.min())
            for table in (self.evidence.table, self.instruments.table):
                table.since_ms = max(table.since_ms, self._first_ms)
        self.exposures += len(rows.ts_ms)
        mine = slice(None) if of_line is None else of_line
        self.evidence.add_exposures(rows.ts_ms[mine], rows.paths[mine], rows.logit[mine])
        self.instruments.add_exposures(rows.ts_ms, rows.paths, rows.p)

    def happen(self, rows: HeadRows, delay_ms: NDArray[np.int64], of_line: NDArray[np.bool_] | None = None) -> None:
        """Their events, each ``delay_ms`` after its exposure; they count once time has come to them.

        Those of exposures that were never seen, or are forgotten, are left out: of the former only the late ones would
        be there, and the law would believe that all are late.
        """
        seen = np.flatnonzero(rows.ts_ms >= self._first_ms) if self.exposures else np.zeros(0, np.intp)
        if not len(seen):
            return
        mine = np.ones(len(rows.ts_ms), np.bool_) if of_line is None else of_line
        self._ahead.add(Come(rows.ts_ms[seen], delay_ms[seen], *rows.take(seen)[1:], mine[seen]))

    def _count(self, come: Come) -> None:
        self.law.add(come.ts_ms, come.delay_ms)
        self.events += len(come.ts_ms)
        mine = come.of_line
        self.evidence.add_clicks(come.ts_ms[mine], come.paths[mine], come.logit[mine])
        self.instruments.add_clicks(come.ts_ms, come.paths, come.p)

    def advance(self, now_ms: int) -> None:
        """All exposures and events up to ``now_ms`` are known."""
        crossed = now_ms // COHORT_MS > self.evidence.table.now_ms // COHORT_MS
        if len(self._ahead) and len((come := self._ahead.take(now_ms)).ts_ms):
            self._count(come)
        self.law.advance(now_ms)
        if crossed:
            self._judge(now_ms)
        self.instruments.table.advance(now_ms, self.pace.keep)
        self.evidence.table.advance(now_ms, _EVIDENCE_KEEP_MS)
        if crossed:
            self.gains.advance(now_ms, _EVIDENCE_KEEP_MS)
            self._next_trial(now_ms)

    def _judge(self, now_ms: int) -> None:
        """Weigh candidates on the displays of their trials that are old enough."""
        wait_ms = min(float(self.law.quantile(_JUDGED_SHARE)), self.pace.longest_wait)
        for trial in [one for one in self.trials if one.until_ms and one.until_ms + wait_ms <= now_ms]:
            self.trials.remove(trial)
            gain = gain_of(trial.candidate, self.evidence.span(trial.from_ms, trial.until_ms))
            if not gain.clicks:
                continue
            path = np.append(gain.paths, 0)
            bins = np.append(np.zeros(len(gain.paths), np.int64), 1)
            nats = np.rint(np.append(gain.offsets, gain.curve) * WEIGHT_SCALE).astype(np.int64)
            clicks = np.append(np.zeros(len(gain.paths), np.int64), int(gain.clicks))
            ts_ms = np.full(len(path), trial.from_ms, np.int64)
            self.gains.add(ts_ms, path, bins, np.stack([nats, clicks], axis=1))

    def _next_trial(self, now_ms: int) -> None:
        """Close the open trial when it has displays enough, and fit the next candidate to what is known."""
        boundary = now_ms // COHORT_MS * COHORT_MS
        if self.trials and not self.trials[-1].until_ms:
            last = self.trials[-1]
            lasted_ms = boundary - last.from_ms
            few = lasted_ms < self.pace.longest_trial and self.evidence.expected(last.from_ms) < _TRIAL_CLICKS
            if few or lasted_ms < self.pace.shortest_trial:
                return
            self.trials[-1] = last._replace(until_ms=boundary)
        candidate = self.trials[-1].candidate if self.trials else SliceMap(self.plan)
        if self.events - self._fitted_at_events >= _REFIT_HALF_LIVES * min(self.config.half_life_clicks, 1e6):
            self._fitted_at_events = self.events
            self.evidence.forget(self.config.half_life_clicks)
            self.gains.drop_before(self.evidence.table.since_ms)
            self.evidence.bound_paths(self.plan)
            candidate = self.candidate()
        self.trials.append(Trial(boundary, 0, candidate))

    def candidate(self, version: int = 0) -> SliceMap:
        """The map fitted to the evidence, whether it has proved itself or not."""
        return self.fitted(self.weighed(), version)

    def weighed(self) -> Weighed:
        """The evidence, ready for a fit."""
        return self.evidence.weighed(self.config.half_life_clicks, float(self.law.quantile(RIPE_SHARE)))

    def fitted(self, weighed: Weighed, version: int = 0) -> SliceMap:
        """The map fitted to evidence, proved or not."""
        return fit_slice_map(
            weighed,
            self.plan,
            prior_weight=self.config.prior_weight,
            slice_prior_clicks=self.config.slice_prior_clicks,
            version=version,
        )

    def to_bytes(self) -> bytes:
        """All that a restart needs beside the plan: it goes on bit-equal."""
        content = HeadContent(
            plan=self.plan.fingerprint,
            config=self.config,
            exposures=self.exposures,
            events=self.events,
            fitted_at_events=self._fitted_at_events,
            law={name: ArrayContent.of(array) for name, array in self.law.state().items()},
            evidence=self.evidence.table.to_bytes(),
            instruments=self.instruments.table.to_bytes(),
            gains=self.gains.to_bytes(),
            trials=[TrialContent.of(*trial) for trial in self.trials],
            first_ms=self._first_ms,
            ahead=ArrayContent.of(self._ahead.state()),
        )
        return to_wire(content)

    def magnitude(self) -> float:
        """The largest sum over a table of counts: those of states that are merged must not wrap an int64."""
        tables = (self.evidence.table, self.instruments.table, self.gains)
        of_tables = [float(np.abs(one.sums()).sum(axis=0, dtype=np.float64).max(initial=0)) for one in tables]
        return max(*of_tables, self.law.magnitude())

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        plan: SlicePlan,
        config: CalibratorConfig | None = None,
        prior: DelayPrior | None = None,
        pace: Pace = CLICK_PACE,
    ) -> Self:
        """Read what `to_bytes` wrote; ValueError when it is something else, damaged, or of another plan.

        config : None goes on with the one that the state was counted with.
        """
        with unreadable_is_a_value_error("a calibration state"):
            return cls._of_content(from_wire(data), plan, config, prior, pace)

    @classmethod
    def _of_content(
        cls,
        content: HeadContent,
        plan: SlicePlan,
        config: CalibratorConfig | None,
        prior: DelayPrior | None,
        pace: Pace,
    ) -> Self:
        if content.plan != plan.fingerprint:
            raise ValueError(
                "calibration state was counted by other slices than the feature spec's: its paths mean other rows. "
                "Drop it, or run every program with one spec."
            )
        head = cls(plan, config or content.config, prior, pace)
        head.law = DelayLaw.from_state({name: one.array() for name, one in content.law.items()}, prior=prior)
        head.evidence = MapEvidence(CohortTable.from_bytes(content.evidence))
        head.instruments = Instruments(CohortTable.from_bytes(content.instruments))
        head.gains = CohortTable.from_bytes(content.gains)
        for table, columns in ((head.evidence.table, 2), (head.instruments.table, 5), (head.gains, 2)):
            if table.columns != columns:
                raise ValueError(f"cohorts of {table.columns} sums where {columns} are counted: drop the state.")
        for table in (head.evidence.table, head.instruments.table):
            check_counts("sums", table.sums()[:, :3])  # losses may be negative
        head.exposures, head.events = content.exposures, content.events
        head._fitted_at_events = content.fitted_at_events
        head._first_ms, head._ahead = content.first_ms, EventsAhead.from_state(content.ahead.array())
        head.trials = [Trial(one.from_ms, one.until_ms, one.candidate(plan)) for one in content.trials]
        return head
