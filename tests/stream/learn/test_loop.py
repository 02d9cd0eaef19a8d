"""The learning loop: cuts, order, restarts, rejects, publications."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.deepfm.model import DeepFM
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.terms import Terms
from learners.features.shape import ModelShape
from stream.learn.config import LearningConfig
from stream.learn.learn_order import in_learn_order
from stream.learn.loop import Diverged, Learned, LearningLoop, LoopState, Rejected, Skipped
from stream.records import validity
from stream.records.examples import ExampleRows, concat
from stream.records.wire import JournalRecord, OffsetRange
from tests.stream import pipeline
from tests.stream.pipeline import SMALL, SPEC, START_MS

Record = tuple[int, int, ExampleRows, int]  # partition, offset, rows, watermark
CONFIG = LearningConfig(learn_batch_rows=16, learn_interval_s=30.0, publish_interval_s=5.0, snapshot_interval_s=60.0)


def example_rows(count: int, seed: int, **columns: Any) -> ExampleRows:
    """Rows that stand in the order in which they are learned."""
    return in_learn_order(pipeline.example_rows(count, seed, **columns))


def model() -> DeepFM:
    """The model at version 0."""
    return DeepFM(SMALL, ModelShape.of(SPEC))


def log(partitions: int, records: int, seed: int = 0) -> list[Record]:
    """Records of several partitions in one order of arrival; each brings its watermark 4 s further."""
    rng = np.random.default_rng(seed)
    offsets = [0] * partitions
    out: list[Record] = []
    for at in range(records):
        partition = int(rng.integers(partitions))
        rows = example_rows(int(rng.integers(0, 25)), seed=seed * 1000 + at)
        out.append((partition, offsets[partition], rows, START_MS + 4_000 * at))
        offsets[partition] += 1
    return out


def feed(loop: LearningLoop, records: list[Record]) -> list[Learned]:
    """The learn steps that records lead to."""
    outcomes = [o for p, offset, rows, mark in records for o in loop.step(rows, p, offset, mark)]
    return [outcome for outcome in outcomes if isinstance(outcome, Learned)]


def restarted(loop: LearningLoop) -> LearningLoop:
    """What a snapshot of the loop brings back."""
    state = LoopState.from_arrays(loop.state().to_arrays())
    twin = DeepFM.from_state(SMALL, loop.model.shape, loop.model.state())
    return LearningLoop(twin, CONFIG, loop.partitions, state=state)


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 40), seed=st.integers(0, 3))
def test_restarted_from_a_snapshot_anywhere_goes_on_bit_equal(cut: int, seed: int) -> None:
    """A loop restored from a snapshot and given the rest of the log has the weights of one never stopped."""
    records = log(1, 40, seed)
    whole = LearningLoop(model(), CONFIG, 1)
    feed(whole, records)
    first = LearningLoop(model(), CONFIG, 1)
    feed(first, records[:cut])
    second = restarted(first)
    start = {p: at.offset for p, at in second.positions().items()}
    feed(second, [r for r in records if r[1] >= start.get(r[0], 0)])
    assert second.version == whole.version
    assert second.model.weights_sha256() == whole.model.weights_sha256()


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 60), seed=st.integers(0, 3))
def test_the_journal_rebuilds_the_weights_of_a_killed_run(cut: int, seed: int) -> None:
    """From a snapshot and the journal after it come the versions and weights of a run over several partitions."""
    records = log(3, 60, seed)
    stored = {(p, offset): rows for p, offset, rows, _ in records}
    killed = LearningLoop(model(), CONFIG, 3)
    feed(killed, records[:cut])
    again = restarted(killed)
    journals = [learned.journal for learned in feed(killed, records[cut:])]
    for journal in journals:
        again.relearn(journal, fetched(stored, journal.ranges))
    assert again.version == killed.version
    assert again.model.weights_sha256() == killed.model.weights_sha256()
    assert again.positions() | killed.positions() == killed.positions()


def test_while_it_catches_up_batches_are_larger_and_the_journal_says_so() -> None:
    """Only rows cut them, not the interval; a loop that does not lag makes the same weights of the journal."""
    records = log(2, 60)
    lagging = LearningLoop(model(), dataclasses.replace(CONFIG, catch_up_batch_rows=50), 2)
    again = restarted(lagging)
    learned = feed(lagging, records[:10])
    lagging.catching_up = True
    larger = feed(lagging, records[10:50])
    assert {len(one.rows) for one in larger} == {50}
    lagging.catching_up = False
    learned += [*larger, *feed(lagging, records[50:])]
    assert len(learned[-1].rows) <= 16
    stored = {(p, offset): rows for p, offset, rows, _ in records}
    for one in learned:
        again.relearn(one.journal, fetched(stored, one.journal.ranges))
    assert again.model.weights_sha256() == lagging.model.weights_sha256()


def test_a_larger_usual_batch_stays_while_it_catches_up() -> None:
    """Whoever sets batches of 64 and lags is not slowed down by the bound of 20."""
    config = dataclasses.replace(CONFIG, learn_batch_rows=64, catch_up_batch_rows=20)
    loop = LearningLoop(model(), config, 1)
    loop.catching_up = True
    assert {len(one.rows) for one in feed(loop, log(1, 20))} == {64}


def fetched(stored: dict[tuple[int, int], ExampleRows], ranges: list[OffsetRange]) -> ExampleRows:
    """The rows of some ranges, one by one: the slow and obvious way."""
    parts = [ExampleRows.empty(SPEC.id_columns, SPEC.dense_inputs)]
    for r in ranges:
        for offset in range(r.from_offset, r.to_offset + 1):
            rows = stored.get((r.partition, offset))
            if rows is not None:
                low = r.from_row if offset == r.from_offset else 0
                high = r.to_row if offset == r.to_offset else len(rows)
                parts.append(in_learn_order(rows).take(slice(low, high)))
    return concat(parts)


def test_every_row_is_learned_once_in_order_whatever_the_records() -> None:
    """The batches, put together, are the rows of the log; all but the last of a cut are full."""
    records = log(2, 50)
    loop = LearningLoop(model(), CONFIG, 2)
    learned = feed(loop, records)
    learned += [o for o in loop.flush() if isinstance(o, Learned)]
    seen = np.concatenate([one.rows.impression_id for one in learned])
    assert seen.tolist() == np.concatenate([rows.impression_id for _, _, rows, _ in records]).tolist()
    assert [one.journal.version for one in learned] == list(range(1, len(learned) + 1))
    assert {len(one.rows) for one in learned} - {16}, "the interval must have cut some batch before it was full"
    assert max(len(one.rows) for one in learned) == 16


def test_a_record_that_comes_twice_is_learned_once() -> None:
    """Redelivery from the committed offset changes nothing."""
    records = log(2, 20)
    once, twice = LearningLoop(model(), CONFIG, 2), LearningLoop(model(), CONFIG, 2)
    feed(once, records)
    feed(twice, records[:15])
    feed(twice, records)
    assert twice.model.weights_sha256() == once.model.weights_sha256()


def test_scores_come_before_learning() -> None:
    """The logits of an outcome are those of the weights before its step."""
    rows = example_rows(16, seed=1)
    loop = LearningLoop(model(), CONFIG, 1)
    before = model().predict_many(rows.rows())
    (learned,) = feed(loop, [(0, 0, rows, 0)])
    assert learned.logits.tolist() == before.tolist()
    paid = np.where(rows.kind == EXPOSURE, np.logaddexp(0, before), -before).sum()
    assert learned.loss.log_loss == pytest.approx(paid / (rows.kind == EXPOSURE).sum(), rel=1e-5)
    assert loop.model.predict_many(rows.rows()).tolist() != before.tolist()


def test_without_a_head_for_them_conversions_are_only_counted() -> None:
    """They are no rows of a batch."""
    kind = np.array([EXPOSURE] * 14 + [CLICK, CLICK, CONVERSION], np.uint8)
    loop = LearningLoop(model(), CONFIG, 1)
    (learned,) = feed(loop, [(0, 0, example_rows(17, seed=1, kind=kind), 0)])
    assert np.sort(learned.rows.kind).tolist() == kind[:16].tolist()
    assert loop.conversions == 1
    assert learned.loss.exposures == 14


def test_exposures_are_sampled_and_weighed_and_the_journal_tells_the_rate() -> None:
    """Every click is learned; the loop learns the terms of what is kept, and so does one of another rate from it."""
    config = dataclasses.replace(CONFIG, learn_batch_rows=27, exposure_rate=0.25)
    loop, again, by_hand = (LearningLoop(model(), one, 1) for one in (config, CONFIG, CONFIG))
    rows = example_rows(64, seed=1)
    (learned,) = feed(loop, [(0, 0, rows, 0)])
    assert (learned.rows.kind == CLICK).sum() == (rows.kind == CLICK).sum()
    assert 0 < (learned.rows.kind == EXPOSURE).sum() < 0.6 * (rows.kind == EXPOSURE).sum()
    assert learned.journal.exposure_rate == 0.25
    again.relearn(learned.journal, rows)
    weight = np.where(learned.rows.kind == EXPOSURE, 4, 1).astype(np.float32)
    by_hand.model.learn_terms(learned.rows.rows(), Terms.of_kinds(learned.rows.kind, ("click",), weight))
    assert loop.model.weights_sha256() == again.model.weights_sha256() == by_hand.model.weights_sha256()


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38, 1e30, -2e4])
def test_rows_that_are_not_finite_are_rejected_and_the_others_learned(value: float) -> None:
    """Such a dense input costs its own row, never the record or the batch, never the process."""
    rows = example_rows(17, seed=1)
    dense = rows.dense.copy()
    dense[3, 2] = value
    loop = LearningLoop(model(), CONFIG, 1)
    rejected, learned = loop.step(dataclasses.replace(rows, dense=dense), 0, 7, 0)
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.partition, rejected.offset) == ("not_finite", 0, 7)
    assert rejected.rows.impression_id.tolist() == [rows.impression_id[3]]
    assert isinstance(learned, Learned)
    assert learned.rows.impression_id.tolist() == np.delete(rows.impression_id, 3).tolist()


def test_an_unknown_kind_is_rejected_and_the_model_untouched_by_it() -> None:
    """A kind of 9 goes aside with its row; what is learned is what the other rows alone would have taught."""
    rows = example_rows(17, seed=1)
    rows.kind[5] = 9
    loop, other = LearningLoop(model(), CONFIG, 1), LearningLoop(model(), CONFIG, 1)
    rejected, learned = loop.step(rows, 0, 0, 0)
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.rows.kind.tolist()) == ("schema", [9])
    assert isinstance(learned, Learned)
    feed(other, [(0, 0, rows.take(np.delete(np.arange(17), 5)), 0)])
    assert loop.model.weights_sha256() == other.model.weights_sha256()


class _Timed(DeepFM):
    """Writes down the times it is given, and how many steps it had made then."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.advanced: list[tuple[int, int]] = []
        self.steps = 0

    def advance(self, event_ms: int) -> None:
        self.advanced.append((event_ms, self.steps))

    def learn_terms(self, *arguments: Any, **options: Any) -> None:
        super().learn_terms(*arguments, **options)
        self.steps += 1


def test_a_model_is_given_the_time_before_each_step_and_again_when_it_learns_again() -> None:
    """The watermark of the journal, in the first run and in the second."""
    records = log(3, 60)
    stored = {(p, offset): rows for p, offset, rows, _ in records}
    first, second = (_Timed(SMALL, ModelShape.of(SPEC)) for _ in range(2))
    journals = [one.journal for one in feed(LearningLoop(first, CONFIG, 3), records)]
    assert first.advanced == [(j.watermark_ms, j.version - 1) for j in journals if j.watermark_ms]
    assert len({at for at, _ in first.advanced}) > 3
    again = LearningLoop(second, CONFIG, 3)
    for journal in journals:
        again.relearn(journal, fetched(stored, journal.ranges))
    assert second.advanced == first.advanced


class _Astray(DeepFM):
    """Is sure of the opposite from its eleventh step on."""

    steps = 0

    def learn_terms(self, *arguments: Any, **options: Any) -> None:
        self.steps += 1
        super().learn_terms(*arguments, **options)

    def predict_many(self, rows: Any) -> Any:
        logits = super().predict_many(rows)
        return logits if self.steps < 10 else np.where(np.arange(len(logits)) % 2, 12, -12).astype(np.float32)


def test_a_loss_out_of_bounds_stops_publishing_and_not_the_loop() -> None:
    """The batch that proves it is in the journal; after it only heartbeats of the version published before."""
    config = LearningConfig(learn_batch_rows=16, publish_interval_s=5.0, diverged_loss_batches=4)
    loop = LearningLoop(_Astray(SMALL, ModelShape.of(SPEC)), config, 1)
    outcomes, published = [], []
    for at in range(30):
        outcomes += loop.step(example_rows(16, seed=at), 0, at, START_MS + 6_000 * at)
        delta = loop.take_publication()
        published += [] if delta is None else [delta.version]
    (diverged,) = (one for one in outcomes if isinstance(one, Diverged))
    learned = [one.journal.version for one in outcomes if isinstance(one, Learned)]
    assert "more than 3 times" in diverged.detail
    assert learned == list(range(1, len(learned) + 1))
    assert 10 < len(learned) <= 14
    assert published[-1] == len(learned) - 1
    assert loop.take_publication(at_once=True) is None
    assert not loop.snapshot_due()


def test_a_loss_out_of_bounds_is_so_again_after_a_restart() -> None:
    """The watch goes into the snapshot: the run that is repeated ends at the same batch."""
    config = LearningConfig(learn_batch_rows=16, diverged_loss_batches=4)
    loop = LearningLoop(_Astray(SMALL, ModelShape.of(SPEC)), config, 1)
    records = [(0, at, example_rows(16, seed=at), START_MS + at) for at in range(30)]
    feed(loop, records[:10])
    assert not loop.diverged
    twin = _Astray.from_state(SMALL, loop.model.shape, loop.model.state())
    twin.steps = 10
    again = LearningLoop(twin, config, 1, state=LoopState.from_arrays(loop.state().to_arrays()))
    journals = [one.journal for one in feed(loop, records[10:])]
    for journal in journals:
        assert not again.diverged
        again.relearn(journal, fetched({(p, at): rows for p, at, rows, _ in records}, journal.ranges))
    assert loop.diverged
    assert again.diverged


def test_without_a_watermark_of_every_partition_nothing_is_due() -> None:
    """A partition never heard holds the time of the loop at its start."""
    loop = LearningLoop(model(), CONFIG, 2)
    assert feed(loop, [(0, at, example_rows(3, seed=at), START_MS + 60_000 * at) for at in range(4)]) == []
    assert loop.take_publication() is None
    assert len(feed(loop, [(1, 0, example_rows(0, seed=0), START_MS + 90_000)])) == 1
    assert loop.watermark_ms == START_MS + 90_000


def test_publications_follow_the_watermark_and_chain() -> None:
    """A delta when the interval passed and something was learned, a heartbeat when only time passed."""
    loop = LearningLoop(model(), CONFIG, 1)
    follower = model()
    deltas = []
    for partition, offset, rows, mark in log(1, 30):
        loop.step(rows, partition, offset, mark)
        if (delta := loop.take_publication()) is not None:
            deltas.append(delta)
            follower.apply(delta)
    changes = [delta for delta in deltas if not delta.is_heartbeat]
    assert [delta.parent for delta in changes] == [0, *(delta.version for delta in changes[:-1])]
    marks = [delta.watermark_ms for delta in deltas]
    assert min(np.diff(marks)) >= 5_000
    assert follower.predict_many(example_rows(9, seed=5).rows()).tolist() != (
        model().predict_many(example_rows(9, seed=5).rows()).tolist()
    )
    loop.step(example_rows(0, seed=0), 0, 30, START_MS + 300_000)
    loop.take_publication(at_once=True)
    loop.step(example_rows(0, seed=0), 0, 31, START_MS + 400_000)
    heartbeat = loop.take_publication()
    assert heartbeat is not None
    assert heartbeat.is_heartbeat
    assert heartbeat.watermark_ms == START_MS + 400_000


def test_a_delta_carries_the_clicks_first_learned_in_it() -> None:
    """Broker times of clicks ride along once, for the measurement of freshness."""
    rows = example_rows(16, seed=1)
    loop = LearningLoop(model(), CONFIG, 1)
    loop.step(rows, 0, 0, START_MS)
    delta = loop.take_publication()
    assert delta is not None
    assert len(delta.clicks_produced_ms) == (rows.kind == CLICK).sum() > 0
    loop.step(example_rows(16, seed=2, kind=np.zeros(16, np.uint8)), 0, 1, START_MS + 10_000)
    later = loop.take_publication()
    assert later is not None
    assert not len(later.clicks_produced_ms)


HUGE = np.float32(1e30)


@pytest.fixture
def _unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is too large to be learned, so that a batch can explode."""
    monkeypatch.setattr(validity, "MOST_DENSE", np.inf)


def exploding(count: int, seed: int) -> ExampleRows:
    """Rows whose gradient's square is not finite, although every number of theirs is."""
    rows = example_rows(count, seed=seed, kind=np.full(count, CLICK))
    return dataclasses.replace(rows, dense=np.full_like(rows.dense, HUGE))


@pytest.mark.usefixtures("_unbounded")
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_batch_that_explodes_is_left_out_and_the_next_one_learned() -> None:
    """Its version has the weights of the one before; the journal says so, and another loop does the very same."""
    loop = LearningLoop(model(), CONFIG, 1)
    records = [example_rows(16, seed=1), exploding(16, 2), example_rows(16, seed=3)]
    outcomes = [one for at, rows in enumerate(records) for one in loop.step(rows, 0, at, START_MS + at)]
    assert [type(one) for one in outcomes] == [Learned, Skipped, Learned]
    journals = [one.journal for one in outcomes if isinstance(one, (Learned, Skipped))]
    assert [(one.version, one.skipped) for one in journals] == [(1, False), (2, True), (3, False)]
    again = LearningLoop(model(), LearningConfig(), 1)
    after = []
    for journal, rows in zip(journals, records, strict=True):
        again.relearn(journal, rows)
        after.append(again.model.dense.flat.numpy().copy())
    assert (after[0] == after[1]).all()
    assert (after[1] != after[2]).any()
    assert again.model.weights_sha256() == loop.model.weights_sha256()
    assert not loop.diverged
    with pytest.raises(ValueError, match=r"version 1 was skipped and is now learned.*snapshot of this log"):
        LearningLoop(model(), CONFIG, 1).relearn(msgspec.structs.replace(journals[0], skipped=True), records[0])


@pytest.mark.usefixtures("_unbounded")
@pytest.mark.filterwarnings("ignore:overflow")
def test_so_many_in_a_row_are_a_divergence_also_across_a_restart() -> None:
    """No more learning, deltas or snapshots; heartbeats of the last published version keep the stream moving."""
    config = dataclasses.replace(CONFIG, most_skipped_batches=3)
    loop = LearningLoop(model(), config, 1)
    outcomes = loop.step(example_rows(16, seed=1), 0, 0, START_MS)
    loop.take_publication()
    outcomes += loop.step(
        concat([exploding(32, 2), example_rows(16, seed=3, kind=np.full(16, CLICK)), exploding(32, 4)]), 0, 1, START_MS
    )
    assert [type(one) for one in outcomes] == [Learned, Skipped, Skipped, Learned, Skipped, Skipped]
    loop.take_publication(at_once=True)
    loop = LearningLoop(loop.model, config, 1, state=LoopState.from_arrays(loop.state().to_arrays()))
    outcomes = loop.step(exploding(48, 5), 0, 2, START_MS + 10_000)
    assert [type(one) for one in outcomes] == [Skipped, Diverged]
    loop.step(example_rows(48, seed=6), 0, 3, START_MS + 900_000)
    heartbeat = loop.take_publication(at_once=True)
    assert heartbeat is not None
    assert heartbeat.is_heartbeat
    assert (heartbeat.version, heartbeat.watermark_ms) == (6, START_MS + 900_000)
    assert not loop.snapshot_due()
    assert loop.flush() == []


@pytest.mark.parametrize(("name", "value"), [("most_skipped_batches", 0), ("exposure_rate", 0), ("exposure_rate", 1.5)])
def test_settings_beyond_their_bounds_are_refused(name: str, value: float) -> None:
    """The message names the setting and the variable."""
    with pytest.raises(ValueError, match=f"(?s){name}={value}.*MILLSTREAM_{name.upper()}"):
        LearningConfig(**{name: value})  # type: ignore[arg-type]


def test_a_journal_of_another_run_is_refused() -> None:
    """Versions or rows that do not follow are named, not learned."""
    loop = LearningLoop(model(), CONFIG, 1)
    with pytest.raises(ValueError, match="version 3 of 2 rows"):
        loop.relearn(JournalRecord(version=3, rows=2, ranges=[], watermark_ms=0), example_rows(2, seed=0))


@pytest.mark.parametrize("wrong", [{"diverged_loss_ratio": 1.0}, {"diverged_loss_batches": 0}])
def test_a_bound_that_every_model_would_exceed_is_refused(wrong: dict[str, float]) -> None:
    """The message names both variables."""
    with pytest.raises(ValueError, match=r"(?s)MILLSTREAM_DIVERGED_LOSS_RATIO.*MILLSTREAM_DIVERGED_LOSS_BATCHES"):
        LearningConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["learn_batch_rows", "learn_interval_s", "publish_interval_s", "snapshot_interval_s"])
def test_settings_that_would_never_act_are_refused(name: str) -> None:
    """The message names the setting and the variable."""
    with pytest.raises(ValueError, match=f"(?s){name}=0.*MILLSTREAM_{name.upper()}"):
        LearningConfig(**{name: 0})  # type: ignore[arg-type]
