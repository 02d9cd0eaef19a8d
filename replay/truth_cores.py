"""The product's cores behind one door, as the truth scenarios drive them: score, join, learn, calibrate, swap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from calibration.cohorts import COHORT_MS
from calibration.config import CalibratorConfig
from calibration.instruments import figures
from learners.deepfm.model import DeepFM
from learners.examples.kinds import EXPOSURE
from learners.features.encode import EncodedIds, Encoder
from learners.features.session_state import COUNTER, USER, SessionView
from learners.features.spec import FeatureSpec
from learners.protocol.state_names import prefixed
from serving.calibrator import HotCalibrator
from serving.freshness import Freshness
from serving.impression_ids import ImpressionIds
from serving.model import HotModel
from serving.ranking import Ranker, Scored
from serving.served_rows import served_records
from stream.calibrate.calibrator import PartitionCalibrator
from stream.join.config import JoinConfig
from stream.join.core import JoinCore
from stream.join.in_memory import MemoryJoin
from stream.join.output import Records
from stream.learn.config import LearningConfig
from stream.learn.delayed_terms import DelayedTerms
from stream.learn.line_calibration import LineCalibration
from stream.learn.loop import LearningLoop, LoopState
from stream.learn.outcomes import Diverged
from stream.records.deltas import to_parts
from stream.records.events import EventRows
from stream.records.examples import ExampleRows
from stream.records.served import served_rows
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS

PARTITION = 0
MAX_PART_BYTES = 2**30  # nothing travels

Relabel = Callable[[ExampleRows | None, int], ExampleRows | None]
"""Examples that the join gave, with its watermark, to those that are learned instead."""


class Cores:
    """One partition of the whole loop. Everything depends on what is passed in, times too.

    Parameters
    ----------
    base : the model that serves first; it is copied. It knows the displays before ``since_ms``, not all their clicks.
    relabel : stands between join and learner; None: the join's examples are learned as they are.
    """

    def __init__(
        self, spec: FeatureSpec, base: DeepFM, since_ms: int, *, learn_interval_s: float, relabel: Relabel | None
    ) -> None:
        self.spec = spec
        self._join = MemoryJoin(JoinCore(JoinConfig(), PARTITION), spec.id_columns, spec.dense_inputs)
        self._relabel = relabel
        self._since_ms = since_ms
        learning = LearningConfig(learn_interval_s=learn_interval_s, publish_interval_s=min(learn_interval_s, 60.0))
        self.loop = LearningLoop(copied(base), learning, 1, version=1)
        self.calibrator = PartitionCalibrator(
            PARTITION, CalibratorConfig(), learning.publish_interval_s, plan=spec.slice_plan
        )
        self.hot = HotModel(copied(base), spec_hash=spec.hash, version=1, watermark_ms=0, freshness=Freshness())
        self.hot_calibrator = HotCalibrator(plan=spec.slice_plan)
        self.ranker = Ranker(Encoder(spec), self.hot, self.hot_calibrator, ImpressionIds(0, 0))
        self.keep_tail = False
        """Whether what is learned is kept, for a new base."""
        self._tail: list[tuple[int, ExampleRows, int]] = []
        self.stopped: list[str] = []  # why the learner learns no more
        self._records = self._examples = 0

    # --------------------------------------------------------------------------------------------------------- serving

    def score(self, ids: EncodedIds) -> Scored:
        """Score requests by whatever model and map are in use."""
        view = SessionView(
            np.zeros(len(ids.user_key), USER),
            np.zeros((len(ids.user_key), len(self.spec.request_counters)), COUNTER),
            np.zeros((len(ids.row_request), len(self.spec.ad_counters)), COUNTER),
        )
        return self.ranker.score(ids, view)

    # ------------------------------------------------------------------------------------------------------------ join

    def served(self, scored: Scored) -> None:
        """Log what was served to the join."""
        for _, record in served_records(scored, self.spec, partitions=1):
            rows = served_rows(record, self.spec)
            self._join.core.served(rows, self._next_record(len(rows)))

    def events(self, topic: str, rows: EventRows) -> None:
        """Deliver events of one input."""
        if not len(rows):
            return
        core = self._join.core
        take = {IMPRESSIONS: core.impressions, CLICKS: core.clicks, CONVERSIONS: core.conversions}[topic]
        take(rows, self._next_record(len(rows)))

    def join(self, now_ms: int) -> tuple[ExampleRows | None, int]:
        """What became known by ``now_ms`` on the clock, and the watermark."""
        output = self._join.poll(now_ms)
        if output.rejects:
            first = output.rejects[0]
            raise ValueError(f"the join rejected {len(output.rejects)} events, first {first.reason}, {first.detail}")
        return _without(output.examples, self._since_ms), output.watermark_ms

    def _next_record(self, rows: int) -> Records:
        self._records += 1
        return Records.one(self._records, rows)

    # ----------------------------------------------------------------------------------------------- learner and map

    def learn(self, rows: ExampleRows | None, watermark_ms: int) -> None:
        """Learn and count examples, and swap in what that publishes."""
        if self._relabel is not None:
            rows = self._relabel(rows, watermark_ms)
        if rows is None:
            rows = ExampleRows.empty(self.spec.id_columns, self.spec.dense_inputs)
        if self.keep_tail:
            self._tail.append((self._examples, rows, watermark_ms))
        self._step(self.loop, self._examples, rows, watermark_ms)
        self.calibrator.step(rows, self._examples, watermark_ms)
        self._examples += 1
        self.publish()

    def _step(self, loop: LearningLoop, offset: int, rows: ExampleRows, watermark_ms: int) -> None:
        for outcome in loop.step(rows, PARTITION, offset, watermark_ms):
            if isinstance(outcome, Diverged):
                self.stopped.append(outcome.detail)

    def take_base(self, base: DeepFM) -> None:
        """Go over to a new base, as the learner does: what was kept of the tail is replayed to it before it serves."""
        line = self.loop.version + 1
        loop = LearningLoop(copied(base), self.loop.config, 1, version=line)
        brought = LineCalibration(self.spec.slice_plan)
        for offset, rows, watermark_ms in self._tail:
            logits = loop.model.predict_many(rows.take(rows.kind == EXPOSURE).rows())
            brought.count(rows, logits if logits.ndim == 1 else logits[:, 0], watermark_ms)
            self._step(loop, offset, rows, watermark_ms)
        loop.resume_from_base(line)
        loop.take_publication(at_once=True, in_silence=True)  # serving cannot use it: it leads there from the base
        self.loop, self._tail, self.keep_tail = loop, [], False
        self.hot.install(copied(loop.model), version=loop.version, watermark_ms=loop.watermark_ms)
        self.hot_calibrator.serve_line(line, brought.to_bytes())
        self.calibrator.newest_line = line

    def count(self, rows: ExampleRows, watermark_ms: int) -> None:
        """Let the calibration count examples that are not to be learned: the base has learned them."""
        self.calibrator.step(rows, self._examples, watermark_ms)
        self._examples += 1

    def go_on_owing(self, owed: DelayedTerms) -> None:
        """Let the learner go on as one that has these clicks still to pay. Only before it learned anything."""
        state = LoopState(
            version=1, positions={}, watermarks={}, watermark_ms=0, newest_event_ms=0,
            arrays=prefixed("step.delayed.", owed.state()),
        )  # fmt: skip
        self.loop = LearningLoop(self.loop.model, self.loop.config, 1, state=state)

    def publish(self) -> None:
        """Swap in what learner and calibration have to publish."""
        delta = self.loop.take_publication()
        if delta is not None:
            for part in to_parts(delta, MAX_PART_BYTES):
                self.hot.offer(part)
        record = self.calibrator.take_publication()
        if record is not None:
            self.hot_calibrator.offer(record)

    # ------------------------------------------------------------------------------------------------------ instruments

    def early(self, since_ms: int) -> tuple[float, int, int]:
        """What the instruments tell of the displays since ``since_ms``: O/E of served p, clicks, and until when.

        Early: displays count with the share of their clicks that should have come. Cohorts count when they are whole.
        """
        state, watermark_ms = self.calibrator.clicks, self.calibrator.watermark_ms
        found = figures(
            [(state.instruments, state.law)],
            self.spec.slice_plan,
            click_window_s=state.config.click_window_s,
            windows_s=((watermark_ms - since_ms) // 1000,),
        )
        of_all = next(one for one in found if one.slice == "all" and one.period == "early")
        return of_all.observed_over_expected, of_all.clicks, watermark_ms // COHORT_MS * COHORT_MS


def example_rows(
    scored: Scored, kind: int, known_ms: NDArray[np.int64] | None = None, delay_ms: NDArray[np.int64] | None = None
) -> ExampleRows:
    """Examples of one kind of everything that was scored, displayed when it was asked for and known then or later."""
    rows, count = scored.encoded.rows(), scored.encoded.row_count
    ts_ms = scored.ids.ts_ms[scored.encoded.row_request]
    return ExampleRows(
        kind=np.full(count, kind, np.uint8),
        impression_id=scored.impression_id,
        user_key=scored.ids.user_key[scored.encoded.row_request],
        ts_ms=ts_ms,
        known_ms=ts_ms if known_ms is None else known_ms,
        delay_ms=np.zeros(count, np.int64) if delay_ms is None else delay_ms,
        value=np.zeros(count, np.float32),
        logit=scored.logit,
        p=scored.p,
        conversion_logit=scored.conversion_logit,
        conversion_p=scored.p_conversion,
        propensity=np.ones(count, np.float32),
        model_version=np.full(count, scored.model_version, np.int64),
        click_produced_ms=np.zeros(count, np.int64),
        ids=rows.ids,
        dense=rows.dense,
    )


def _without(rows: ExampleRows | None, before_ms: int) -> ExampleRows | None:
    """Without exposures of displays before a time: the base has learned them."""
    if rows is None:
        return None
    known = (rows.kind == EXPOSURE) & (rows.ts_ms < before_ms)
    return rows.take(~known) if known.any() else rows


def copied(model: DeepFM) -> DeepFM:
    """A model of its own with the same weights, of which no changes are known."""
    found = type(model).from_state(model.config, model.shape, model.state())
    found.table.take_changed()
    return found


def conversion_scores(scored: Scored) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logit and probability of a conversion of the click, (B,) each; NaN from a model without that head."""
    return scored.conversion_logit, scored.p_conversion
