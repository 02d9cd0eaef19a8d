"""The learning loop: score, measure, learn, so that every metric is progressive. No clock, no broker.

Time is the watermark of the examples; what is learned, and in which batches, hangs on the order of the examples and
on their watermarks alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.deepfm import DeepFM, DivergenceError
from learners.delta import Delta
from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.metrics import losses, probability
from learners.targets import arrivals
from stream.examples import ExampleRows
from stream.learnable import faults, learnable
from stream.learning_config import LearningConfig
from stream.loss_watch import BatchLoss, LossWatch
from stream.pending import Batch, PendingExamples, Position
from stream.records import JournalRecord


class LoopState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a restarted loop needs beside the model: goes into the snapshot."""

    version: int
    positions: dict[int, tuple[int, int]]  # partition -> (offset, row) of the first row not learned
    watermarks: dict[int, int]  # partition -> watermark_ms
    watermark_ms: int
    newest_event_ms: int
    losses: list[BatchLoss] = []

    def encode(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> LoopState:
        """Read what `encode` wrote; msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=cls)


@dataclass(frozen=True, slots=True)
class Learned:
    """One learn step. The logits are those of the model before it learned these rows."""

    journal: JournalRecord
    rows: ExampleRows
    logits: NDArray[np.float32]  # (B,)
    log_loss: float  # progressive, of the settled rows; NaN without any


@dataclass(frozen=True, slots=True)
class Rejected:
    """Rows that cannot be learned; ``rows`` are only the bad ones."""

    partition: int
    offset: int
    reason: str
    detail: str
    rows: ExampleRows


@dataclass(frozen=True, slots=True)
class Diverged:
    """The model's gradients stopped being finite, or its loss left all bounds: nothing is learned or published more."""

    detail: str


LearnOutcome = Learned | Rejected | Diverged


class LearningLoop:
    """Cuts examples into batches and learns them; one model, all partitions.

    A batch is learned when ``learn_batch_rows`` rows wait, or when the watermark (the least of all partitions) enters
    the next ``learn_interval_s`` of event time. Settled rows are learned with their label. A correction (a click after
    its impression was settled as not clicked) is learned as one more row with label 1: the negative step is not undone,
    so such a row counts one negative and one positive. Conversions are learned likewise by a model that has a head for
    them, else only counted.

    Before each step the model is told the watermark, on which expiry hangs: the journal holds it, so that learning a
    batch again tells the same.

    Parameters
    ----------
    partitions : partitions of the examples topic; there is no watermark before all of them were heard.
    state : of a snapshot, to go on after it.
    """

    def __init__(
        self,
        model: DeepFM,
        config: LearningConfig,
        partitions: int,
        *,
        state: LoopState | None = None,
        version: int = 0,
    ) -> None:
        self.model = model
        self.config = config
        self.partitions = partitions
        self.version = state.version if state else version
        self.published_version = self.version
        self.diverged = False
        self.corrections = self.conversions = 0
        self._heads = model.heads.names
        self._loss_watch = LossWatch(
            ratio=config.diverged_loss_ratio,
            batches=config.diverged_loss_batches,
            held=state.losses if state else (),
        )
        self.newest_event_ms = state.newest_event_ms if state else 0
        self._watermarks: dict[int, int] = dict(state.watermarks) if state else {}
        self._watermark_ms = state.watermark_ms if state else 0
        self._pending = PendingExamples()
        for partition, position in (state.positions if state else {}).items():
            self._pending.move_to(partition, Position(*position))
        self._published_ms = self._snapshot_ms = self._watermark_ms
        self._new_clicks_ms: list[NDArray[np.int64]] = []

    @property
    def watermark_ms(self) -> int:
        """Event time before which every example has arrived, 0 while a partition was never heard."""
        return self._watermark_ms

    @property
    def waiting_rows(self) -> int:
        """Rows that arrived and are not learned yet."""
        return len(self._pending)

    def positions(self) -> dict[int, Position]:
        """The first row of each partition that is not learned yet."""
        return self._pending.positions()

    def next_offset(self, partition: int) -> int:
        """The first offset of a partition that ``step`` has not seen whole."""
        position = self._pending.next_position(partition)
        return position.offset

    def step(self, rows: ExampleRows, partition: int, offset: int, watermark_ms: int) -> list[LearnOutcome]:
        """Take one examples record and learn the batches that it fills, or that its watermark makes due.

        A record that was taken before changes nothing.
        """
        if offset < self.next_offset(partition):
            return []
        if self.diverged:
            self._advance(partition, watermark_ms)
            return []
        outcomes: list[LearnOutcome] = [
            Rejected(partition, offset, fault.reason, fault.detail, rows.take(fault.rows)) for fault in faults(rows)
        ]
        self.conversions += int(np.count_nonzero(rows.kind == CONVERSION))
        self._pending.add(rows, learnable(rows, self._heads), partition, offset)
        while len(self._pending) >= self.config.learn_batch_rows and not self.diverged:
            outcomes += self._learn(self._pending.cut(self.config.learn_batch_rows))
        if self._advance(partition, watermark_ms) and self._pending:
            outcomes += self._learn_next()
        return outcomes

    def flush(self) -> list[LearnOutcome]:
        """Learn what waits: at the end of the input, or when the caller's clock says so.

        It moves the cuts, so that the order of the examples alone no longer tells the weights: the journal does.
        """
        return self._learn_next() if self._pending else []

    def _learn_next(self) -> list[LearnOutcome]:
        return [] if self.diverged else self._learn(self._pending.cut(self.config.learn_batch_rows))

    def relearn(self, journal: JournalRecord, rows: ExampleRows) -> list[LearnOutcome]:
        """Learn again a batch that a run before this one learned after its snapshot: the rows of the journal's ranges.

        Raises ValueError when the record is not the next one or the rows are not as many as it says.
        """
        kept = rows.take(np.flatnonzero(learnable(rows, self._heads)))
        if journal.version != self.version + 1 or len(kept.label) != journal.rows:
            raise ValueError(
                f"the journal says version {journal.version} of {journal.rows} rows, found {len(kept.label)} after "
                f"{self.version}: the snapshot and the log are not of one run. Give a snapshot of this log."
            )
        for stretch in journal.ranges:
            self._pending.move_to(stretch.partition, Position(stretch.to_offset, stretch.to_row))
        self._watermark_ms = max(self._watermark_ms, journal.watermark_ms)
        return self._learn(Batch(kept, journal.ranges))

    def resume_after(self, published_version: int) -> None:
        """After `relearn`: what a run before this one published last. The next delta goes on from there."""
        self.published_version = published_version
        if published_version == self.version:
            self._new_clicks_ms = []

    def resume_from_base(self, version: int) -> None:
        """After learning what came since the base of that version: the next delta leads from it to here.

        The clicks in it are no news: the line before this one had published them.
        """
        self.published_version = version
        self._new_clicks_ms = []

    def take_publication(self, *, at_once: bool = False) -> Delta | None:
        """The delta since the last one when ``publish_interval_s`` has passed (or ``at_once``), else None.

        A heartbeat when the model did not change but time did.
        """
        due = self._watermark_ms >= self._published_ms + self.config.publish_interval_s * 1000.0
        changed = self.version != self.published_version and not self.diverged
        if not due and not (at_once and changed):
            return None
        self._published_ms = self._watermark_ms
        if not changed:
            return self.heartbeat()
        parent, self.published_version = self.published_version, self.version
        clicks, self._new_clicks_ms = self._new_clicks_ms, []
        return self.model.changes(
            version=self.version,
            parent=parent,
            watermark_ms=self._watermark_ms,
            newest_event_ms=self.newest_event_ms,
            clicks_produced_ms=np.concatenate(clicks) if clicks else (),
        )

    def heartbeat(self) -> Delta:
        """Nothing new, but that time has passed."""
        return Delta.heartbeat(
            spec_hash=self.model.shape.spec_hash,
            version=self.published_version,
            watermark_ms=self._watermark_ms,
            newest_event_ms=self.newest_event_ms,
        )

    def snapshot_due(self) -> bool:
        """Whether ``snapshot_interval_s`` has passed since ``state`` was taken last. Never after a divergence."""
        interval_ms = self.config.snapshot_interval_s * 1000.0
        return not self.diverged and self._watermark_ms >= self._snapshot_ms + interval_ms

    def state(self) -> LoopState:
        """Where the loop stands, for the snapshot. Publish before, so that the snapshot is of a published version."""
        self._snapshot_ms = self._watermark_ms
        return LoopState(
            version=self.version,
            positions={p: (at.offset, at.row) for p, at in sorted(self.positions().items())},
            watermarks=dict(sorted(self._watermarks.items())),
            watermark_ms=self._watermark_ms,
            newest_event_ms=self.newest_event_ms,
            losses=self._loss_watch.held(),
        )

    def _advance(self, partition: int, watermark_ms: int) -> bool:
        """Take a partition's watermark; True when the loop's own entered the next learn interval."""
        self._watermarks[partition] = max(watermark_ms, self._watermarks.get(partition, 0))
        if len(self._watermarks) < self.partitions:
            return False
        before, self._watermark_ms = self._watermark_ms, max(self._watermark_ms, min(self._watermarks.values()))
        if before == 0:  # the first watermark: the timer of snapshots starts here
            self._snapshot_ms = self._watermark_ms
        interval_ms = self.config.learn_interval_s * 1000.0
        return self._watermark_ms // interval_ms > before // interval_ms

    def _learn(self, batch: Batch) -> list[LearnOutcome]:
        rows = batch.rows
        features, wanted = rows.rows(), arrivals(rows.kind, rows.label, self._heads)
        if self._watermark_ms:
            self.model.advance(self._watermark_ms)
        logits = self.model.predict_many(features)
        try:
            self.model.learn_many(features, wanted.labels, wanted.weight)
        except DivergenceError as error:
            self.diverged = True
            return [Diverged(str(error))]
        self.version += 1
        self.corrections += int(np.count_nonzero(rows.kind == CORRECTION))
        self.newest_event_ms = max(self.newest_event_ms, int(rows.known_ms.max()))
        self._new_clicks_ms.append(_clicks_produced_ms(rows))
        journal = JournalRecord(
            version=self.version, rows=len(rows), ranges=batch.ranges, watermark_ms=self._watermark_ms
        )
        sums = _loss_of(logits, rows)
        outcomes: list[LearnOutcome] = [Learned(journal, rows, logits, sums.loss / sums.rows if sums.rows else np.nan)]
        if (astray := self._loss_watch.update(sums)) is not None:
            self.diverged = True
            outcomes.append(Diverged(astray))
        return outcomes


def _clicks_produced_ms(rows: ExampleRows) -> NDArray[np.int64]:
    """Broker times of the clicks that are new in these rows; a conversion's click was learned before."""
    new = (rows.label == 1) & (rows.kind != CONVERSION) & (rows.click_produced_ms > 0)
    return np.asarray(rows.click_produced_ms[new])


def _loss_of(logits: NDArray[np.float32], rows: ExampleRows) -> BatchLoss:
    settled = rows.kind == SETTLED
    scored, clicked = logits[settled], rows.label[settled] == 1
    return BatchLoss(
        rows=len(scored),
        clicks=int(clicked.sum()),
        expected=float(probability(scored).sum(dtype=np.float64)),
        loss=float(losses(scored, clicked).sum()),
    )
