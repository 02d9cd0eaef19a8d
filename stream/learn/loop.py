"""The learning loop: score, measure, learn, so that every metric is progressive. No clock, no broker: event time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.delta import Delta
from learners.deepfm.model import DeepFM
from learners.examples.kinds import CLICK, CONVERSION
from learners.metrics.divergence import BatchLoss, LossWatch
from learners.protocol.state_names import prefixed, under
from stream.learn.click_silence import ClickSilence
from stream.learn.config import LearningConfig
from stream.learn.learn_order import in_learn_order
from stream.learn.model_step import ModelStep
from stream.learn.outcomes import Diverged, Heard, Learned, LearnOutcome, Rejected, Silent, Skipped
from stream.learn.publication import Publication
from stream.learn.queue import Batch, PendingExamples, Position
from stream.learn.state import CLICK_DELAYS, STEP, LoopState
from stream.learn.watermarks import LeastWatermark
from stream.records.examples import ExampleRows
from stream.records.validity import Checked, learnable, sampled
from stream.records.wire import JournalRecord, Silence

__all__ = ["Diverged", "LearnOutcome", "Learned", "LearningLoop", "LoopState", "Rejected", "Skipped"]


class LearningLoop:
    """Cuts examples into batches and learns them; one model, all partitions.

    A batch is learned when ``learn_batch_rows`` rows wait, or when the watermark (the least of all partitions) enters
    the next ``learn_interval_s`` of event time; while `catching_up`, when ``catch_up_batch_rows`` do. Every row pays
    its term of the log loss when it comes (`Terms`): an exposure softplus(z), its click −z. Conversions are rows of a
    model that has a head for them (else only counted); their clicks pay that head's softplus(z) when conversions would
    come (`DelayedTerms`).
    Before each step the model is told the watermark, on which expiry hangs; the journal holds it.
    A batch whose gradients are not finite is skipped: its version has the weights of the one before. After
    ``most_skipped_batches`` of them in a row, or when the loss leaves its bounds, the model has diverged. While clicks
    that should come do not (`ClickSilence`), what is displayed is left out and nothing but heartbeats is published.

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
        self.diverged = False
        self.catching_up = False  # more waits than is learned in time: set from outside, as only batches depend on it
        self.conversions = 0
        self._heads = model.heads.names
        self._skipped_in_a_row = state.skipped_in_a_row if state else 0
        self._loss_watch = LossWatch(
            ratio=config.diverged_loss_ratio,
            batches=config.diverged_loss_batches,
            state=state.loss_watch if state else None,
        )
        self.model_step = ModelStep(model, config, under(STEP, state.arrays) if state else {})
        self._silence = ClickSilence(
            least_probability=config.silence_probability,
            state=state.silence if state else None,
            law=under(CLICK_DELAYS, state.arrays) if state else None,
        )
        self.left_out_rows = 0
        self.newest_event_ms = state.newest_event_ms if state else 0
        self._partition_watermarks = LeastWatermark(partitions, state.watermarks if state else {})
        self._watermark_ms = state.watermark_ms if state else 0
        self._ahead_ms = 0  # the watermark of the record that is being taken, when no click of it waits
        self._pending = PendingExamples()
        for partition, position in (state.positions if state else {}).items():
            self._pending.move_to(partition, Position(*position))
        self._snapshot_ms = self._watermark_ms
        self._publication = Publication(model, self.version, self._watermark_ms, interval_s=config.publish_interval_s)

    @property
    def watermark_ms(self) -> int:
        """Event time before which every example has arrived, 0 while a partition was never heard."""
        return self._watermark_ms

    @property
    def published_version(self) -> int:
        """What serving holds."""
        return self._publication.version

    @property
    def silent(self) -> bool:
        """Whether clicks that should have come did not: nothing is published until they do."""
        return self._silence.silent

    @property
    def whole(self) -> bool:
        """Whether the model may be published and kept: it has not diverged, and clicks come."""
        return not self.diverged and not self.silent

    @property
    def waiting_rows(self) -> int:
        """Rows that arrived and are not learned yet."""
        return len(self._pending)

    def positions(self) -> dict[int, Position]:
        """The first row of each partition that is not learned yet."""
        return self._pending.positions()

    def next_offset(self, partition: int) -> int:
        """The first offset of a partition that ``step`` has not seen whole."""
        return self._pending.next_position(partition).offset

    def log_cut(self, partition: int, offset: int) -> None:
        """What comes from ``offset`` on is new; take a snapshot at once, since the journal names what was there."""
        self._pending.log_cut(partition, offset)

    def step(self, rows: ExampleRows, partition: int, offset: int, watermark_ms: int) -> list[LearnOutcome]:
        """Take one examples record and learn the batches that it fills, or that its watermark makes due.

        A record that was taken before changes nothing.
        """
        if offset < self.next_offset(partition):
            return []
        rows = in_learn_order(rows)
        heard_ms = self._partition_watermarks.hear(partition, watermark_ms)
        self._ahead_ms = 0 if (rows.kind == CLICK).any() else heard_ms
        if self.diverged:
            self._advance_to(heard_ms)
            return []
        checked = Checked.of(rows, self._heads)
        outcomes: list[LearnOutcome] = [
            Rejected(partition, offset, one.reason, one.detail, rows.take(one.rows)) for one in checked.faults
        ]
        sound = checked.possible  # the queue counts rows as they stand in the record, bad ones too
        if (silence := self._silence.heard(sound)) is not None:
            outcomes.append(Heard(silence))
        waiting = self._pending.waiting(self._partition_watermarks.state())
        if (begun := self._silence.foreseen(sound, watermark_ms, self._watermark_ms, waiting)) is not None:
            outcomes.append(self._begin_silence(*begun))
        self.conversions += int(np.count_nonzero(sound.kind == CONVERSION))
        kept = self._kept(rows, checked.learnable, self.config.exposure_rate)
        self._pending.add(rows, kept, partition, offset)
        while len(self._pending) >= self._batch_rows and not self.diverged:
            outcomes += self._learn_next()
        if self._advance_to(heard_ms) and self._pending and not self.catching_up:
            outcomes += self._learn_next()
        return outcomes

    def hear(self, partition: int, watermark_ms: int) -> None:
        """The watermark of the last record of a partition that was taken before a restart; its rows were learned."""
        self._advance_to(self._partition_watermarks.hear(partition, watermark_ms))

    def flush(self) -> list[LearnOutcome]:
        """Learn what waits, at the end of the input. It moves the cuts, which only the journal tells then."""
        return self._learn_next() if self._pending else []

    def _learn_next(self) -> list[LearnOutcome]:
        return [] if self.diverged else self._learn(self._pending.cut(self._batch_rows))

    @property
    def _batch_rows(self) -> int:
        usual = self.config.learn_batch_rows
        return max(usual, self.config.catch_up_batch_rows) if self.catching_up else usual

    def relearn(self, journal: JournalRecord, rows: ExampleRows) -> list[LearnOutcome]:
        """Learn again a batch that a run before this one learned after its snapshot: the rows of the journal's ranges.

        Raises ValueError when the record is not the next one, the rows are not as many as it says, or they were skipped
        then and are not now, or the other way round.
        """
        self._silence.adopt(journal.silences)
        kept = rows.take(np.flatnonzero(self._kept(rows, learnable(rows, self._heads), journal.exposure_rate)))
        if journal.version != self.version + 1 or len(kept) != journal.rows:
            raise ValueError(
                f"the journal says version {journal.version} of {journal.rows} rows, found {len(kept)} after "
                f"{self.version}: the snapshot and the log are not of one run. Give a snapshot of this log."
            )
        for stretch in journal.ranges:
            self._pending.move_to(stretch.partition, Position(stretch.to_offset, stretch.to_row))
        self._watermark_ms = max(self._watermark_ms, journal.watermark_ms)
        outcomes = self._learn(Batch(kept, journal.ranges), journal)
        if (skipped := isinstance(outcomes[0], Skipped)) != journal.skipped:
            raise ValueError(
                f"version {journal.version} was {'skipped' if journal.skipped else 'learned'} and is now "
                f"{'skipped' if skipped else 'learned'}: the weights are others. Start from a snapshot of this log, on "
                "a machine with the same build of torch."
            )
        return outcomes

    def resume_after(self, published_version: int) -> None:
        """After `relearn`: what a run before this one published last. The next delta goes on from there."""
        self._publication.go_on_from(published_version, clicks_are_news=published_version != self.version)

    def resume_from_base(self, version: int) -> None:
        """After learning what came since the base of that version: the next delta leads from it to here.

        The clicks in it are no news: the line before this one had published them.
        """
        self._publication.go_on_from(version, clicks_are_news=False)

    def take_publication(self, *, at_once: bool = False, in_silence: bool = False) -> Delta | None:
        """The delta since the last one when ``publish_interval_s`` has passed (or ``at_once``), else None.

        A heartbeat when only time went on, after a divergence, and in a silence unless ``in_silence``.
        """
        changed = self.version != self.published_version and (self.whole or (in_silence and not self.diverged))
        return self._publication.take(
            self.version, self._watermark_ms, self.newest_event_ms, changed=changed, at_once=at_once
        )

    def heartbeat(self) -> Delta:
        """Nothing new, but that time has passed."""
        return self._publication.heartbeat(self._watermark_ms, self.newest_event_ms)

    def snapshot_due(self) -> bool:
        """Whether ``snapshot_interval_s`` has passed since ``state`` was taken last; never unless `whole`."""
        return self.whole and self._watermark_ms >= self._snapshot_ms + self.config.snapshot_interval_s * 1000.0

    def state(self) -> LoopState:
        """Where the loop stands, for the snapshot. Publish before, so that the snapshot is of a published version."""
        self._snapshot_ms = self._watermark_ms
        return LoopState(
            version=self.version,
            positions={p: (at.offset, at.row) for p, at in sorted(self.positions().items())},
            watermarks=self._partition_watermarks.state(),
            watermark_ms=self._watermark_ms,
            newest_event_ms=self.newest_event_ms,
            loss_watch=self._loss_watch.state(),
            skipped_in_a_row=self._skipped_in_a_row,
            silence=self._silence.state(),
            arrays=prefixed(CLICK_DELAYS, self._silence.law_state()) | prefixed(STEP, self.model_step.state()),
        )

    def _kept(self, rows: ExampleRows, fit: NDArray[np.bool_], exposure_rate: float) -> NDArray[np.bool_]:
        left_out = self._silence.left_out(rows)
        self.left_out_rows += int(np.count_nonzero(left_out))
        return fit & sampled(rows, exposure_rate) & ~left_out

    def _advance_to(self, heard_ms: int) -> bool:
        """True when the loop's own watermark entered the next learn interval."""
        before, self._watermark_ms = self._watermark_ms, max(self._watermark_ms, heard_ms)
        if before == 0 < self._watermark_ms:  # the first watermark: the timer of snapshots starts here
            self._snapshot_ms = self._watermark_ms
        interval_ms = self.config.learn_interval_s * 1000.0
        return self._watermark_ms // interval_ms > before // interval_ms

    def _learn(self, batch: Batch, like: JournalRecord | None = None) -> list[LearnOutcome]:
        rows = batch.rows
        self._ahead_ms = like.ahead_ms if like else self._ahead_ms
        step = self.model_step.make(rows, self._watermark_ms, self._silence, like)
        self.version += 1
        journal = JournalRecord(
            version=self.version,
            rows=len(rows),
            ranges=batch.ranges,
            watermark_ms=self._watermark_ms,
            ahead_ms=self._ahead_ms,
            exposure_rate=step.exposure_rate,
            skipped=bool(step.skipped),
            silences=list(self._silence.silences),
            paid_clicks=step.paid_clicks,
            conversion_delays=step.conversion_delays,
        )
        if step.skipped:
            return self._skip(Skipped(journal, rows, step.skipped))
        self._skipped_in_a_row = 0
        self.newest_event_ms = max(self.newest_event_ms, int(rows.known_ms.max()))
        self._publication.learned(rows)
        loss = BatchLoss.of(step.logits, step.terms)
        outcomes: list[LearnOutcome] = [Learned(journal, rows, step.logits, step.terms, loss)]
        if (astray := self._loss_watch.update(loss)) is not None:
            outcomes.append(self._diverge(astray))
        begun = self._silence.learned(rows, step.logits, step.terms, self._watermark_ms, self._ahead_ms)
        if begun is not None:
            outcomes.append(self._begin_silence(*begun))
        if not self._pending:
            self._silence.forget()
        return outcomes

    def _begin_silence(self, silence: Silence, missing: float) -> Silent:
        self.left_out_rows += self._pending.keep(lambda rows: ~self._silence.left_out(rows))
        return Silent(silence.from_ms, missing)

    def _skip(self, skipped: Skipped) -> list[LearnOutcome]:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row < self.config.most_skipped_batches:
            return [skipped]
        return [skipped, self._diverge(f"{self._skipped_in_a_row} batches in a row were skipped: {skipped.detail}")]

    def _diverge(self, detail: str) -> Diverged:
        self.diverged = True
        return Diverged(detail)
