"""The loop in one process and in simulated time: no broker, no Redis, no clock, the same cores, the same bits each run.

    requests ─► Ranker ─► JoinCore ─► SessionFold ─► (next request)
                              └─► LearningLoop ─► delta ─► HotModel
                              └─► PartitionCalibrator ─► HotCalibrator

Delays are honest: a display, a click and a conversion reach sessions, learner and calibrator at their event times,
never before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.encode import Encoder, Request
from learners.features.rows import Rows
from learners.features.spec import FeatureSpec
from learners.snapshots.snapshot import Snapshot
from replay.frozen import frozen_logits
from replay.report import Report, displayed, outcomes, report
from replay.scenario import Scenario
from replay.timeline import EventQueue, Tick, ticks
from serving.calibrator import HotCalibrator
from serving.freshness import Freshness
from serving.impression_ids import ImpressionIds
from serving.messages import prices_of
from serving.model import HotModel
from serving.ranking import Ranker, Scored, expected_value, ranked
from serving.served_rows import served_records
from stream.calibrate.calibrator import PartitionCalibrator
from stream.join.config import JoinConfig
from stream.join.core import JoinCore
from stream.join.in_memory import MemoryJoin
from stream.join.output import Records
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.records.deltas import to_parts
from stream.records.examples import ExampleRows, concat
from stream.records.served import served_rows
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from stream.sessions.fold import SessionFold
from stream.sessions.in_memory import MemorySessionStore

PARTITION = 0
MAX_PART_BYTES = 2**30  # nothing travels


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestOptions:
    """What can be set of a backtest; the cores' own settings keep their defaults."""

    tick_s: float = 20.0  # requests of a tick are scored together, on what was known at its start
    learn_interval_s: float = 300.0  # of event time; a historical log is thin, a batch needs minutes to fill
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.tick_s < inf:
            raise ValueError(f"tick_s={self.tick_s} must be positive: time would not pass. Pass --tick-s 20.")
        if not 0 < self.learn_interval_s < inf:
            raise ValueError(
                f"learn_interval_s={self.learn_interval_s} must be positive and finite: no step would end by it. Pass "
                "--learn-interval-s 300."
            )


@dataclass(frozen=True, slots=True)
class Base:
    """What the base days leave behind: examples in the order of the stream, and the session features."""

    examples: ExampleRows
    store: MemorySessionStore


def collect_base(
    scenario: Scenario,
    spec: FeatureSpec,
    span_ms: tuple[int, int],
    advance: Callable[[int], None],
    options: BacktestOptions | None = None,
) -> Base:
    """Replay the base days without a model: ads in random order (or as logged), events at their times."""
    store = MemorySessionStore(spec)
    parts: list[ExampleRows] = []

    def keep(rows: ExampleRows | None, watermark_ms: int) -> None:
        if rows is not None:
            parts.append(rows)

    collect(scenario, spec, store, span_ms, advance, keep, options)
    return Base(concat(parts), store)


def collect(
    scenario: Scenario,
    spec: FeatureSpec,
    store: MemorySessionStore,
    span_ms: tuple[int, int],
    advance: Callable[[int], None],
    on_examples: Callable[[ExampleRows | None, int], None],
    options: BacktestOptions | None = None,
) -> None:
    """Replay a span without a model, going on from ``store``, which is changed.

    ``on_examples`` gets what happens, with the watermark by which it has.
    """
    options = options or BacktestOptions()
    loop = _Loop(scenario, spec, store, _ranker(spec, _NoModel(), 0, options.seed), options)
    loop.order = lambda scored, rows, request: _shuffled(request, len(rows))
    loop.on_examples = on_examples
    loop.run(span_ms, advance)


@dataclass(frozen=True, slots=True)
class Backtest:
    """The report of a backtest and the hashes of what it ended with."""

    report: Report
    sha256: dict[str, str]


def run(
    scenario: Scenario,
    spec: FeatureSpec,
    snapshot: Snapshot,
    store: MemorySessionStore,
    span_ms: tuple[int, int],
    advance: Callable[[int], None],
    options: BacktestOptions | None = None,
) -> Backtest:
    """Replay a span with a model that learns as it goes, next to the base model that does not.

    ``store`` is changed: it goes on from the session features of the base days.
    """
    options = options or BacktestOptions()
    online = _Online(snapshot, spec, options)
    loop = _Loop(scenario, spec, store, online.ranker(spec, options.seed), options)
    loop.on_examples = online.take
    loop.run(span_ms, advance)
    online.finish()
    shown = displayed(concat(online.examples))
    found = report(outcomes(shown, frozen_logits(snapshot.model(), shown.rows)), scenario.utc_offset_h)
    found.facts["versions"] = online.loop.version - snapshot.version
    return Backtest(
        found,
        {
            "weights": online.loop.model.weights_sha256(),
            "calibration": hashlib.sha256(online.calibration_state).hexdigest(),
            "sessions": store.sha256(),
        },
    )


class _NoModel:
    """Before there is a model every ad scores alike."""

    config = DeepFMConfig()

    def predict_heads(self, rows: Rows) -> NDArray[np.float32]:
        return np.zeros((len(rows.ids), 1), np.float32)

    def apply(self, delta: object) -> None:
        raise TypeError("there is no model to apply a delta to")


def _ranker(spec: FeatureSpec, model: Any, version: int, seed: int, calibrator: HotCalibrator | None = None) -> Ranker:
    hot = HotModel(model, spec_hash=spec.hash, version=version, watermark_ms=0, freshness=Freshness())
    return Ranker(Encoder(spec), hot, calibrator or HotCalibrator(), ImpressionIds(0, seed))


def _shuffled(request: Request, count: int) -> Sequence[int]:
    rng = np.random.default_rng(request.request_id)
    return list(map(int, rng.permutation(count)))


def _by_value(scored: Scored, rows: NDArray[np.intp], request: Request) -> Sequence[int]:
    value = expected_value(scored.p[rows], scored.p_conversion[rows], prices_of(request.ads))
    return list(map(int, ranked(value, scored.logit[rows], len(rows))))


class _Online:
    """Learner and calibrator with the serving copies that they publish to."""

    def __init__(self, snapshot: Snapshot, spec: FeatureSpec, options: BacktestOptions) -> None:
        self.version = snapshot.version
        self.loop = LearningLoop(
            snapshot.model(), LearningConfig(learn_interval_s=options.learn_interval_s), 1, version=snapshot.version
        )
        self.served: DeepFM = snapshot.model()
        self.calibrator = PartitionCalibrator(
            PARTITION, CalibratorConfig(), self.loop.config.publish_interval_s, plan=spec.slice_plan
        )
        self.hot_calibrator = HotCalibrator(plan=spec.slice_plan)
        self.calibration_state = b""
        self.examples: list[ExampleRows] = []
        self._offset = 0

    def ranker(self, spec: FeatureSpec, seed: int) -> Ranker:
        """A ranker on the serving copies."""
        ranker = _ranker(spec, self.served, self.version, seed, self.hot_calibrator)
        self.hot = ranker.model
        return ranker

    def take(self, rows: ExampleRows | None, watermark_ms: int) -> None:
        """Learn and count what happened, and swap in what that publishes."""
        if rows is None:
            return
        self.examples.append(rows)
        self.loop.step(rows, PARTITION, self._offset, watermark_ms)
        self.calibrator.step(rows, self._offset, watermark_ms)
        self._offset += 1
        self._publish()

    def finish(self) -> None:
        """Learn the last, incomplete batch."""
        self.loop.flush()
        self._publish(at_once=True)

    def _publish(self, *, at_once: bool = False) -> None:
        delta = self.loop.take_publication(at_once=at_once)
        if delta is not None:
            for part in to_parts(delta, MAX_PART_BYTES):
                self.hot.offer(part)
        record = self.calibrator.take_publication(at_once=at_once)
        if record is not None:
            self.hot_calibrator.offer(record)
            self.calibration_state = record.state


@dataclass(slots=True)
class _Loop:
    """One partition of everything up to the examples, in simulated time."""

    scenario: Scenario
    spec: FeatureSpec
    store: MemorySessionStore
    ranker: Ranker
    options: BacktestOptions
    order: Callable[[Scored, NDArray[np.intp], Request], Sequence[int]] = _by_value
    on_examples: Callable[[ExampleRows | None, int], None] = lambda rows, watermark_ms: None
    _queue: EventQueue = field(default_factory=EventQueue)
    _join: MemoryJoin = field(init=False)
    _fold: SessionFold = field(init=False)
    _offset: int = 0

    def __post_init__(self) -> None:
        config = JoinConfig(click_window_s=self.scenario.click_window_s)
        self._join = MemoryJoin(JoinCore(config, PARTITION), self.spec.id_columns, self.spec.dense_inputs)
        self._fold = SessionFold(self.spec)

    def run(self, span_ms: tuple[int, int], advance: Callable[[int], None]) -> None:
        """Play the span, then let everything happen that it caused."""
        tick_ms = round(self.options.tick_s * 1000)
        for tick in ticks(self.scenario.requests(*span_ms), *span_ms, tick_ms):
            self._pass_time(tick.start_ms)
            self._serve(tick)
            advance(len(tick.requests))
        while self._queue.next_ms is not None:
            self._pass_time(self._queue.next_ms + tick_ms)
        self._pass_time(span_ms[1] + tick_ms)

    def _serve(self, tick: Tick) -> None:
        """Score the tick's requests on what is known, log them to the join, and let the users react."""
        ids = self.ranker.encoder.ids(tick.requests)
        scored = self.ranker.score(ids, self.store.read(self.ranker.encoder, ids))
        for _, record in served_records(scored, self.spec, partitions=1):
            served = served_rows(record, self.spec)
            self._join.core.served(served, self._next_record(len(served)))
        starts = scored.starts()
        for at, request in enumerate(tick.requests):
            rows = np.arange(starts[at], starts[at + 1])
            order = range(len(rows)) if self.scenario.top_k is None else self.order(scored, rows, request)
            user_key = int(ids.user_key[at])
            for display in self.scenario.displays(request, order):
                self._queue.push(int(scored.impression_id[rows[display.index]]), user_key, display)

    def _pass_time(self, now_ms: int) -> None:
        """Everything that happens before ``now_ms`` happens, and reaches the learners."""
        events, core = self._queue.pop_until(now_ms), self._join.core
        for rows, take in zip(events, (core.impressions, core.clicks, core.conversions), strict=True):
            if len(rows):
                take(rows, self._next_record(len(rows)))
        for topic in (SERVED, IMPRESSIONS, CLICKS):
            core.watermark(topic, now_ms)
        output = self._join.poll()
        if output.examples is not None:
            self.store.step(self._fold, output.examples)
        self.on_examples(output.examples, output.watermark_ms)

    def _next_record(self, rows: int) -> Records:
        self._offset += 1
        return Records.one(self._offset, rows)
