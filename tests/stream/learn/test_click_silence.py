"""Displays flow and their clicks do not come: learning holds, and the silent span is left out, of both."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.deepfm.model import DeepFM
from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import Terms
from learners.features.shape import ModelShape
from stream.learn.click_silence import OPEN_MS, ClickSilence, SilenceState
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop, LoopState
from stream.learn.outcomes import Heard, Learned, Silent
from stream.records.examples import concat
from stream.records.wire import Silence
from tests.stream.click_log import Record, clicked_log, records
from tests.stream.learn.test_loop import fetched
from tests.stream.pipeline import SMALL, SPEC, START_MS, example_rows

CONFIG = LearningConfig(learn_batch_rows=32, learn_interval_s=1.0, publish_interval_s=1.0, snapshot_interval_s=5.0)
SILENT_MS = (60_000, 120_000)


def loop_of(partitions: int = 1, config: LearningConfig = CONFIG) -> LearningLoop:
    """A loop at version 0."""
    return LearningLoop(DeepFM(SMALL, ModelShape.of(SPEC)), config, partitions)


def restarted(loop: LearningLoop) -> LearningLoop:
    """What a snapshot brings back."""
    state = LoopState.from_arrays(loop.state().to_arrays())
    model = DeepFM.from_state(SMALL, loop.model.shape, loop.model.state())
    return LearningLoop(model, CONFIG, loop.partitions, state=state)


def watch(probability: float = 1e-6) -> ClickSilence:
    """One that knows that clicks come within seconds."""
    found = ClickSilence(least_probability=probability)
    rows = example_rows(4_000, seed=1, kind=np.full(4_000, CLICK))
    found.learned(rows, np.zeros(4_000, np.float32), Terms.of_kinds(rows.kind, ("click",)), START_MS + 600_000)
    return found


def displays(watch: ClickSilence, count: int, p: float, age_s: float, weight: float = 1.0) -> bool:
    """Whether so many displays without a click, all of an age, are a silence."""
    rows = example_rows(count, seed=2, kind=np.full(count, EXPOSURE))
    now_ms = int(rows.ts_ms.max()) + 60_000
    rows.ts_ms[...] = now_ms - age_s * 1000
    logits = np.full(count, np.log(p / (1 - p)), np.float32)
    terms = Terms.of_kinds(rows.kind, ("click",), np.full(count, weight, np.float32))
    return watch.learned(rows, logits, terms, now_ms) is not None


@pytest.mark.parametrize(("count", "p", "weight"), [(1_400, 0.01, 1.0), (140, 0.01, 10.0), (28, 0.5, 1.0)])
def test_fourteen_clicks_that_should_have_come_are_a_silence_and_thirteen_are_none(
    count: int, p: float, weight: float
) -> None:
    """e^−13.8 is a millionth, whatever the rate; an exposure that stands for ten is owed ten times."""
    assert displays(watch(), count, p, 600.0, weight)
    assert not displays(watch(), count * 13 // 14, p, 600.0, weight)
    assert not displays(watch(0.0), count, p, 600.0, weight)


def test_clicks_of_young_displays_are_not_missing_yet() -> None:
    """The law of delays says how many should have come at their age."""
    assert displays(watch(), 2_000, 0.01, 600.0)
    assert not displays(watch(), 2_000, 0.01, 0.2)


def test_one_click_resets_the_count() -> None:
    """Twice thirteen missing clicks with one between."""
    found = watch()
    assert not displays(found, 1_300, 0.01, 600.0)
    click = example_rows(1, seed=3, kind=np.full(1, CLICK))
    found.learned(click, np.zeros(1, np.float32), Terms.of_kinds(click.kind, ("click",)), START_MS + 600_000)
    assert not displays(found, 1_300, 0.01, 600.0)


def test_what_is_expected_is_held_in_bounded_memory() -> None:
    """Of a model that says one in a billion, however long no click comes."""
    found = watch()
    rows = example_rows(5_000, seed=2, kind=np.full(5_000, EXPOSURE))
    rows.ts_ms[...] = START_MS + 1_000 * np.arange(5_000)
    terms = Terms.of_kinds(rows.kind, ("click",))
    found.learned(rows, np.full(5_000, -20.7, np.float32), terms, START_MS + 5_000_000)
    expected = found.state().expected
    assert len(expected) <= 1_024
    assert sum(clicks for _, clicks in expected) == pytest.approx(5_000 * 1e-9, rel=0.1)


def run(loop: LearningLoop, log: list[Record]) -> list[object]:
    """All outcomes."""
    return [one for p, offset, rows, mark in log for one in loop.step(rows, p, offset, mark)]


def spans(outcomes: list[object]) -> list[Silence]:
    """The silences that ended."""
    return [one.silence for one in outcomes if isinstance(one, Heard)]


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_silence_is_found_and_left_out_and_its_clicks_with_it(partitions: int) -> None:
    """Each impression is learned with its click or not at all; positions go on; nothing of the span is kept."""
    log = clicked_log(10_000, 0.2, partitions=partitions, lost_ms=[SILENT_MS])
    loop = loop_of(partitions)
    outcomes = run(loop, log)
    outcomes += loop.flush()
    (silence,) = spans(outcomes)
    assert SILENT_MS[0] < silence.from_ms - START_MS < SILENT_MS[0] + 20_000
    assert abs(silence.to_ms - START_MS - SILENT_MS[1]) < 3_000
    learned = concat([one.rows for one in outcomes if isinstance(one, Learned)])
    inside = (learned.ts_ms >= silence.from_ms) & (learned.ts_ms < silence.to_ms)
    assert not inside.any()
    every = concat([rows for _, _, rows, _ in log])
    outside = (every.ts_ms < silence.from_ms) | (every.ts_ms >= silence.to_ms)
    assert sorted(learned.impression_id.tolist()) == sorted(every.impression_id[outside].tolist())
    assert loop.left_out_rows == (~outside).sum()
    assert {p: at.offset for p, at in loop.positions().items()} == dict.fromkeys(range(partitions), log[-1][1] + 1)


def test_clicks_that_stand_behind_a_minute_of_displays_are_not_missing() -> None:
    """One record of all displays, then all clicks of a minute: whatever is learned first, the clicks are there."""
    log = clicked_log(1_000, 0.2)
    rows = concat([rows for _, _, rows, _ in log])
    rows = rows.take(np.argsort(rows.kind == CLICK, kind="stable"))
    loop = loop_of()
    assert not any(isinstance(one, Silent) for one in loop.step(rows, 0, 0, log[-1][3] + 60_000))
    assert not loop.silent
    assert loop.left_out_rows == 0


def test_two_minutes_without_clicks_are_not_learned_as_an_audience_that_lost_interest() -> None:
    """At their end the mean prediction of a true 0.2 is what a few seconds of missing clicks made it, not 0.08."""
    log = clicked_log(12_000, 0.2, lost_ms=[(120_000, 240_000)])
    rows = concat([rows for _, _, rows, _ in log])
    shown = rows.take(rows.kind == EXPOSURE).rows()

    def mean(probability: float) -> float:
        loop = loop_of(config=LearningConfig(learn_batch_rows=32, silence_probability=probability))
        run(loop, [record for record in log if record[3] <= log[0][3] + 240_000])
        return float((1 / (1 + np.exp(-loop.model.predict_many(shown)))).mean())

    assert 0.13 < mean(1e-6) < 0.25
    assert mean(0.0) < 0.1


def test_a_backlog_of_clicks_ends_it_and_is_not_learned_either() -> None:
    """The clicks of the silent minute come all at once after it: those of displays in the span are left out."""
    lag = clicked_log(10_000, 0.2)
    rows = concat([one for _, _, one, _ in lag])
    late = (rows.kind == CLICK) & (rows.known_ms >= START_MS + 60_000) & (rows.known_ms < START_MS + 120_000)
    order = np.where(late, START_MS + 120_000, rows.known_ms)
    loop = loop_of()
    outcomes = run(loop, records(rows, by_ms=order)) + loop.flush()
    assert len(spans(outcomes)) == 1
    learned = concat([one.rows for one in outcomes if isinstance(one, Learned)])
    displayed = set(learned.impression_id[learned.kind == EXPOSURE].tolist())
    clicked = set(learned.impression_id[learned.kind == CLICK].tolist())
    assert clicked <= displayed
    assert not loop.silent
    owed = set(rows.impression_id[(rows.kind == CLICK)].tolist()) & displayed
    assert owed == clicked, "clicks of displays that were learned before the silence was found are learned, too"


def test_what_was_held_back_and_comes_at_once_is_not_learned() -> None:
    """Half a minute of two partitions' displays, each in one record, of which the first brings time no further."""
    log = clicked_log(2_000, 0.2, partitions=2)
    loop = loop_of(2)
    run(loop, log)
    before, version, now_ms = loop.model.weights_sha256(), loop.version, log[-1][3]
    for partition in (0, 1):
        shown = example_rows(300, seed=partition, kind=np.full(300, EXPOSURE), p=np.full(300, 0.2, np.float32))
        rows = replace(shown, ts_ms=now_ms + np.arange(300) * 100, known_ms=now_ms + np.arange(300) * 100)
        outcomes = loop.step(rows, partition, loop.next_offset(partition), now_ms + 60_000)
        assert [type(one) for one in outcomes] == ([Silent] if partition == 0 else [])
    assert loop.silent
    assert (loop.version, loop.model.weights_sha256()) == (version, before)


def test_what_several_partitions_held_back_is_looked_at_together() -> None:
    """Of each too few displays to tell, and too few for a batch until the last: none of them is learned."""
    log = clicked_log(2_000, 0.2, partitions=4)
    loop = loop_of(4, LearningConfig(learn_batch_rows=128))
    run(loop, log)
    loop.flush()
    before, now_ms = loop.model.weights_sha256(), log[-1][3]
    for partition in range(4):
        shown = example_rows(40, seed=partition, kind=np.full(40, EXPOSURE), p=np.full(40, 0.2, np.float32))
        rows = replace(shown, ts_ms=now_ms + np.arange(40) * 500, known_ms=now_ms + np.arange(40) * 500)
        loop.step(rows, partition, loop.next_offset(partition), now_ms + 60_000)
    assert loop.silent
    assert loop.model.weights_sha256() == before
    assert loop.left_out_rows == 160


def test_nothing_but_heartbeats_is_published_in_a_silence() -> None:
    """Their watermark goes on; the first delta after it leads from the version before."""
    loop = loop_of()
    seen = []
    for p, offset, rows, mark in clicked_log(8_000, 0.2, lost_ms=[SILENT_MS]):
        loop.step(rows, p, offset, mark)
        if (delta := loop.take_publication()) is not None:
            seen.append((loop.silent, delta))
        if loop.silent:
            assert not loop.snapshot_due()
    silent = [delta for at, delta in seen if at]
    assert len(silent) > 30
    assert all(delta.is_heartbeat for delta in silent)
    assert len({delta.version for delta in silent}) == 1
    assert np.diff([delta.watermark_ms for delta in silent]).min() > 0
    after = next(delta for at, delta in seen if not at and delta.watermark_ms > silent[-1].watermark_ms)
    assert after.parent == silent[-1].version < after.version


@settings(max_examples=12, deadline=None)
@given(cut=st.integers(0, 190), kill=st.integers(0, 60), partitions=st.sampled_from([1, 2]))
def test_killed_at_any_moment_of_it_the_weights_are_those_of_one_life(cut: int, kill: int, partitions: int) -> None:
    """A snapshot before, within or after the silence; the journal from there; the rest of the log."""
    log = clicked_log(8_000, 0.2, partitions=partitions, lost_ms=[SILENT_MS], displays_per_s=42)
    cut, kill = cut * partitions, (cut + kill) * partitions
    stored = {(p, offset): rows for p, offset, rows, _ in log}
    whole = loop_of(partitions)
    run(whole, log[:cut])
    again = restarted(whole)
    journals = [one.journal for one in run(whole, log[cut:kill]) if isinstance(one, Learned)]
    for journal in journals:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(journal), type=type(journal)) == journal
        again.relearn(journal, fetched(stored, journal.ranges))
    assert again.model.weights_sha256() == whole.model.weights_sha256()
    for p, at in again.positions().items():
        for mark in [mark for q, offset, _, mark in log if (q, offset) == (p, at.offset - (at.row == 0))]:
            again.hear(p, mark)
    outcomes = run(whole, log[kill:])
    start = {p: at.offset for p, at in again.positions().items()}
    later = run(again, [one for one in log if one[1] >= start.get(one[0], 0)])
    assert [one for one in outcomes if isinstance(one, Silent)] == [one for one in later if isinstance(one, Silent)]
    assert again.version == whole.version
    assert again.model.weights_sha256() == whole.model.weights_sha256()
    assert again.state().silence == whole.state().silence


def test_a_click_dated_far_ahead_does_not_leave_out_what_comes_after() -> None:
    """A wrong clock ends the silence a minute after the newest display at the latest."""
    state = SilenceState(silences=[Silence(START_MS, OPEN_MS)], left_out_until_ms=START_MS + 5_000)
    found = ClickSilence(least_probability=1e-6, state=state)
    click = example_rows(1, seed=3, kind=np.full(1, CLICK))
    click.known_ms[...] = START_MS + 3_600_000
    assert found.heard(click) == Silence(START_MS, START_MS + 65_000)


def test_many_silences_are_forgotten_oldest_first() -> None:
    """A log of hours with a silence each few minutes holds the last of them only."""
    many = [Silence(START_MS + 1_000 * at, START_MS + 1_000 * at + 500) for at in range(90)]
    found = ClickSilence(least_probability=1e-6, state=SilenceState(silences=many))
    found.forget()
    assert found.silences == many[-64:]
