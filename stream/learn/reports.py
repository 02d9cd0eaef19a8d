"""What a learner writes of its steps: journal and dead letters, metrics, log lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import structlog

from learners.deepfm.delta import Delta
from learners.features.spec import FeatureSpec
from learners.metrics.drift import DriftWatch
from stream.kafka.broker import MAX_RECORD_BYTES
from stream.kafka.log_writer import Outgoing
from stream.learn.loop import LearningLoop
from stream.learn.outcomes import Diverged, Heard, Learned, LearnOutcome, Rejected, Silent, Skipped
from stream.metrics import WorkerMetrics
from stream.records.deltas import to_parts
from stream.records.seal import sealed
from stream.records.topics import DEADLETTER, EXAMPLES, JOURNAL, WEIGHTS
from stream.records.wire import DeadLetter

_encode = msgspec.msgpack.Encoder().encode
_log = structlog.get_logger(__name__)


class LearnReports:
    """Turns the outcomes of a `LearningLoop` into records, metrics and log lines."""

    def __init__(self, spec: FeatureSpec, metrics: WorkerMetrics, dead_letter_bytes: int = MAX_RECORD_BYTES) -> None:
        self._dead_letter_bytes = dead_letter_bytes
        self.drift_watch: DriftWatch | None = None
        self._spec = spec
        self._metrics = metrics
        self._left_out_rows = self._early_clicks = 0
        self._skips_logged = False

    def records(self, loop: LearningLoop, outcomes: Sequence[LearnOutcome]) -> list[Outgoing]:
        """What was learned for the journal, before anything of it is published; rejected rows for the dead letters."""
        records: list[Outgoing] = []
        for outcome in outcomes:
            match outcome:
                case Learned():
                    records.append(Outgoing(JOURNAL, sealed(outcome.journal), key=b"model"))
                    self._learned(outcome)
                case Skipped():
                    records += [Outgoing(JOURNAL, sealed(outcome.journal), key=b"model"), self._skipped(outcome)]
                case Rejected(partition, offset, reason, detail, rows):
                    payload = rows.to_record(self._spec.hash, 0).encode()
                    records.append(self.dead_letter(partition, offset, reason, detail, payload))
                case Diverged(detail):
                    self.diverged(loop, detail)
                case Silent():
                    self._silent(loop, outcome)
                case Heard(silence):
                    _log.warning(
                        "clicks come again: what was displayed without them is left out",
                        since=_time(silence.from_ms),
                        until=_time(silence.to_ms),
                    )
        self._metrics.counter("learn_left_out_rows_total").inc(max(0, loop.left_out_rows - self._left_out_rows))
        self._metrics.counter("learn_early_clicks_total").inc(max(0, loop.model_step.early_clicks - self._early_clicks))
        self._left_out_rows, self._early_clicks = loop.left_out_rows, loop.model_step.early_clicks
        return records

    def published(self, delta: Delta, part_bytes: int) -> list[Outgoing]:
        """The weights records of a delta, of at most about ``part_bytes`` each."""
        parts = [Outgoing(WEIGHTS, sealed(part), key=b"model") for part in to_parts(delta, part_bytes)]
        if not delta.is_heartbeat:
            self._metrics.counter("deltas_total").inc()
            self._metrics.counter("delta_bytes_total").inc(sum(len(part.value) for part in parts))
        return parts

    def diverged(self, loop: LearningLoop, detail: str) -> None:
        """Nothing is learned or published any more."""
        self._metrics.gauge("learn_diverged").set(1)
        _log.error(
            "the model diverged: nothing is learned or published any more, serving keeps the last version",
            version=loop.published_version,
            detail=detail,
            remedy="look at the newest examples; train a base on those before them (python -m learners base --until), "
            "with lower learning rates if they were sound, and start the worker again: it switches to it",
        )

    def dead_letter(self, partition: int, offset: int, reason: str, detail: str, payload: bytes) -> Outgoing:
        """Of a record of the examples, or rows of it."""
        self._metrics.counter("dead_letters_total", topic=EXAMPLES, reason=reason).inc()
        record = DeadLetter.of(
            EXAMPLES, partition, offset, reason, detail, payload, record_bytes=self._dead_letter_bytes
        )
        return Outgoing(DEADLETTER, _encode(record), key=record.key())

    def measure(self, loop: LearningLoop) -> None:
        """Set the gauges."""
        metrics = self._metrics
        metrics.gauge("model_version").set(loop.published_version)
        metrics.gauge("learn_waiting_rows").set(loop.waiting_rows)
        metrics.gauge("learn_silent").set(loop.silent)
        metrics.gauge("learn_delayed_rows").set(loop.model_step.delayed_clicks)
        metrics.gauge("learn_watermark_timestamp_seconds").set(loop.watermark_ms / 1000)

    def _learned(self, learned: Learned) -> None:
        self._metrics.counter("learned_batches_total").inc()
        self._metrics.counter("learned_rows_total").inc(len(learned.rows))
        loss = learned.loss
        if self.drift_watch is None or not math.isfinite(loss.loss):
            return
        if self.drift_watch.update(rows=round(loss.exposures), clicks=round(loss.clicks), loss=loss.loss):
            self._metrics.counter("learn_drifts_total").inc()
            _log.warning("the normalised log loss has changed", version=learned.journal.version)

    def _skipped(self, skipped: Skipped) -> Outgoing:
        """A dead letter with the rows of a batch that was left out; a log line for the first such batch."""
        self._metrics.counter("learn_skipped_batches_total").inc()
        if not self._skips_logged:
            self._skips_logged = True
            _log.error(
                "a batch whose gradients are not finite was left out; learning goes on with the next",
                version=skipped.journal.version,
                rows=len(skipped.rows),
                detail=skipped.detail,
                remedy=f"look at its rows in {DEADLETTER} (reason diverged) for inputs beyond all others; further ones "
                "are counted in millstream_learn_skipped_batches_total. Where they go on, lower the learning rates",
            )
        first = skipped.journal.ranges[0]
        payload = skipped.rows.to_record(self._spec.hash, 0).encode()
        return self.dead_letter(first.partition, first.from_offset, "diverged", skipped.detail, payload)

    def _silent(self, loop: LearningLoop, silent: Silent) -> None:
        self._metrics.counter("learn_silences_total").inc()
        _log.error(
            "clicks that should have come did not: nothing is learned or published until they do",
            since=_time(silent.since_ms),
            missing_clicks=round(silent.missing_clicks, 1),
            version=loop.published_version,
            remedy="look whether the clicks topic is written to and what its lag is; displays of this time are left "
            "out, whatever comes of their clicks. MILLSTREAM_SILENCE_PROBABILITY=0 learns them as not clicked",
        )


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
