"""Clicks pay their term when their conversions would come: the head is true although most are still to come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.terms import Terms
from learners.features.shape import ModelShape
from learners.nn.heads import Head
from stream.learn.config import LearningConfig
from stream.learn.delayed_terms import DelayedTerms
from stream.learn.loop import LearningLoop, LoopState
from stream.learn.outcomes import Learned
from stream.records.examples import ExampleRows, concat
from stream.records.wire import ConversionDelays
from tests.stream.learn.test_loop import fetched
from tests.stream.pipeline import SMALL, SPEC, START_MS, example_rows

HEADS = ("click", "conversion")
MODEL = replace(SMALL, heads=(Head("click"), Head("conversion", given="click")))
AD = ModelShape.of(SPEC).target or 0
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DELAYS = ConversionDelays(horizon_s=30 * 86_400.0, median_s=7_200.0, sigma=2.0)


def clicks(count: int, seed: int = 1, at_ms: int = START_MS) -> ExampleRows:
    """Clicks at a time."""
    rows = example_rows(count, seed=seed, kind=np.full(count, CLICK))
    return replace(rows, ts_ms=np.full(count, at_ms - 1000), known_ms=np.full(count, at_ms))


def converted(rows: ExampleRows, delay_ms: int) -> ExampleRows:
    """A conversion of each, so much later."""
    delays = np.full(len(rows), delay_ms)
    return rows.with_event(CONVERSION, known_ms=rows.known_ms + delay_ms, delay_ms=delays)


def terms_of(rows: ExampleRows) -> Terms:
    """By kind, for both heads."""
    return Terms.of_kinds(rows.kind, HEADS)


NONE = example_rows(0, seed=0)


def test_each_click_pays_once_when_the_law_says_and_teaches_the_conversion_head_alone() -> None:
    """A third within an hour, half within two, nine in ten within a day, all at the end of the window."""
    delayed, paid, ids = DelayedTerms(DELAYS, most_rows=10_000), [], []
    rows = clicks(2_000)
    step = delayed.step(rows, terms_of(rows), HEADS, START_MS, most_paid=10_000)
    assert (step.terms.exposure == 0).all(), "a click pays its head's −z at once and nothing of the other"
    assert (step.terms.event == [1, 0]).all()
    for age_s in (3_600, 7_200, 86_400, 30 * 86_400 + 1):
        step = delayed.step(NONE, terms_of(NONE), HEADS, START_MS + age_s * 1000, most_paid=10_000)
        assert (step.terms.exposure == [0, 1]).all()
        assert not step.terms.event.any()
        paid.append(step.paid)
        ids.append(step.rows.ids)
    assert np.cumsum(paid) / 2_000 == pytest.approx([0.37, 0.5, 0.9, 1.0], abs=0.04)
    assert len(delayed) == 0
    assert sorted(map(tuple, np.concatenate(ids).tolist())) == sorted(map(tuple, rows.ids.tolist()))


def test_exposures_before_the_first_click_pay_nothing_of_conversions() -> None:
    """A stream begins so: no click waits yet, and the rows are learned as they are."""
    shown = example_rows(5, seed=1, kind=np.full(5, EXPOSURE))
    step = DelayedTerms(DELAYS, most_rows=300).step(shown, terms_of(shown), HEADS, START_MS, most_paid=50)
    assert np.array_equal(step.rows.ids, shown.ids)
    assert (step.terms.exposure == [1, 0]).all()
    assert step.paid == 0


def test_beyond_the_bound_those_due_next_pay_early() -> None:
    """Counted, and no more than must."""
    delayed = DelayedTerms(DELAYS, most_rows=300)
    rows = clicks(400)
    step = delayed.step(rows, terms_of(rows), HEADS, START_MS, most_paid=50)
    assert (step.paid, step.paid_early, len(delayed)) == (100, 100, 300)
    other = DelayedTerms(DELAYS, most_rows=10_000)
    other.step(rows, terms_of(rows), HEADS, START_MS, most_paid=50)
    first = other.step(NONE, terms_of(NONE), HEADS, START_MS, paid=100)
    assert first.rows.ids.tolist() == step.rows.ids[400:].tolist()


def test_a_leap_of_time_is_paid_in_parts() -> None:
    """No more at once than asked for."""
    delayed = DelayedTerms(DELAYS, most_rows=10_000)
    rows = clicks(500)
    delayed.step(rows, terms_of(rows), HEADS, START_MS, most_paid=50)
    paid = [delayed.step(NONE, terms_of(NONE), HEADS, START_MS + 40 * DAY_MS, most_paid=128).paid for _ in range(5)]
    assert paid == [128, 128, 128, 500 - 3 * 128, 0]


def test_the_first_conversion_of_a_click_that_was_seen_here_teaches() -> None:
    """Not the second, not one beyond the window, not one of a click before the first: nobody pays for that here."""
    delayed = DelayedTerms(replace_horizon(7 * 86_400.0), most_rows=1_000)
    rows = clicks(3)
    delayed.step(rows, terms_of(rows), HEADS, START_MS, most_paid=50)
    old = converted(clicks(1, seed=2, at_ms=START_MS - 1), HOUR_MS)
    late = converted(rows.take(slice(2, 3)), 8 * DAY_MS)
    batch = concat(
        [converted(rows.take(slice(0, 2)), HOUR_MS), converted(rows.take(slice(0, 1)), 2 * HOUR_MS), old, late]
    )
    step = delayed.step(batch, terms_of(batch), HEADS, START_MS + 2 * HOUR_MS, paid=0)
    assert step.terms.event[:, 1].tolist() == [1, 1, 0, 0, 0]
    again = converted(rows.take(slice(1, 3)), DAY_MS)
    assert delayed.step(again, terms_of(again), HEADS, START_MS + DAY_MS, paid=0).terms.event[:, 1].tolist() == [0, 1]


def replace_horizon(horizon_s: float) -> ConversionDelays:
    """Another attribution window."""
    return ConversionDelays(horizon_s, DELAYS.median_s, DELAYS.sigma)


def test_what_is_remembered_is_bounded() -> None:
    """Conversions beyond the bound, and those older than the window."""
    delayed = DelayedTerms(DELAYS, most_rows=100)
    rows = clicks(150)
    both = concat([rows, converted(rows, HOUR_MS)])
    delayed.step(both, terms_of(both), HEADS, START_MS + HOUR_MS, most_paid=50)
    state = delayed.state()
    assert (len(state["converted"]), len(state["due_ms"])) == (100, 100)
    delayed.step(NONE, terms_of(NONE), HEADS, START_MS + 40 * DAY_MS, most_paid=500)
    assert not len(delayed.state()["converted"])


class Shop:
    """Every second display is clicked, and every tenth click converts log-normally hours later; truth by click."""

    def __init__(self, days: int, *, seed: int, rate: float = 0.1, median_h: float = 5.0, sigma: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        count = 6_000 * days
        at = START_MS + np.sort(rng.integers(0, days * DAY_MS, count))
        rows = example_rows(count, seed=seed, kind=np.full(count, CLICK))
        self.launched: NDArray[np.bool_] = (at >= START_MS + DAY_MS) & (rng.random(count) < 0.2)
        ids = rows.ids.copy()
        ids[:, AD] = np.where(self.launched, 9_999, ids[:, AD])
        self.rows = replace(rows, ts_ms=at - 2_000, known_ms=at, delay_ms=np.full(count, 2_000), ids=ids)
        self.p = np.full(count, rate)
        delay_ms = (median_h * HOUR_MS * np.exp(sigma * rng.normal(size=count))).astype(np.int64)
        sold = np.flatnonzero(rng.random(count) < self.p)
        sales = self.rows.take(sold).with_event(CONVERSION, known_ms=at[sold] + delay_ms[sold], delay_ms=delay_ms[sold])
        shown = self.rows.with_event(EXPOSURE, known_ms=at - 2_000, delay_ms=np.zeros(count, np.int64))
        unclicked = replace(shown, impression_id=shown.impression_id + np.uint64(1))
        every = concat([self.rows, sales, shown, unclicked])
        every = every.take(np.argsort(every.known_ms, kind="stable"))
        self.log = every.take(every.known_ms < START_MS + days * DAY_MS)

    def run(self, loop: LearningLoop) -> NDArray[np.float64]:
        """The head's probability of each click before it is learned; records of five minutes."""
        found: dict[int, float] = {}
        span = self.log.known_ms // 300_000
        for offset, at in enumerate(np.unique(span).tolist()):
            rows = self.log.take(span == at)
            fresh = rows.take(rows.kind == CLICK)
            logits = loop.model.predict_heads(fresh.rows())[:, 1]
            found |= dict(zip(fresh.impression_id.tolist(), 1 / (1 + np.exp(-logits)), strict=True))
            loop.step(rows, 0, offset, (at + 1) * 300_000)
        return np.array([found[one] for one in self.rows.impression_id.tolist()])

    def observed_over_expected(self, p: NDArray[np.float64]) -> tuple[list[float], float]:
        """Of each day's other clicks, and of what was launched on the second day, on that day from its 3rd hour."""
        since_ms = self.rows.known_ms - START_MS
        days = [(since_ms // DAY_MS == day) & ~self.launched for day in range(int(since_ms.max() // DAY_MS) + 1)]
        first = self.launched & (since_ms >= DAY_MS + 3 * HOUR_MS) & (since_ms < 2 * DAY_MS)
        return [float(self.p[one].sum() / p[one].sum()) for one in days], float(
            self.p[first].sum() / max(p[first].sum(), 1e-9)
        )


FAST = replace(MODEL, dense_rate=1e-3, vector_rate=0.02)
CONFIG = LearningConfig(learn_batch_rows=128)


def shop_loop(rate: float = 0.1) -> LearningLoop:
    """A loop over a base that knows the rate and nothing else."""
    model = DeepFM(FAST, ModelShape.of(SPEC))
    dense = model.dense.arrays()
    model.dense.load(dense | {"mlp.conversion.1.bias": np.array([np.log(rate / (1 - rate))], np.float32)})
    return LearningLoop(model, CONFIG, 1)


@pytest.mark.parametrize("median_h", [1.5, 5.0])
def test_the_head_is_true_on_every_day_and_for_what_was_launched(median_h: float) -> None:
    """A tenth converts hours later: within a tenth each day, and a campaign on its first day within a fifth."""
    shop = Shop(2, seed=1, median_h=median_h)
    days, launched = shop.observed_over_expected(shop.run(shop_loop()))
    assert days == pytest.approx([1.0, 1.0], abs=0.1)
    assert launched == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("delay_s", [0, 20])
def test_conversions_that_come_at_once_are_no_certainty(delay_s: int) -> None:
    """Three in ten clicks convert in seconds, not in hours as expected: soon three conversions come on ten payments."""
    delayed, rng = DelayedTerms(DELAYS, most_rows=10_000), np.random.default_rng(1)
    to_come: list[tuple[int, ExampleRows]] = []
    paid, events = np.zeros(240), np.zeros(240)
    for second in range(240):
        came = clicks(3, seed=second, at_ms=START_MS + second * 1000)
        buyers = came.take(np.flatnonzero(rng.random(3) < 0.3))
        to_come.append((second + delay_s, converted(buyers, delay_s * 1000)))
        rows = concat([came, *(rows for at, rows in to_come if at == second)])
        step = delayed.step(rows, terms_of(rows), HEADS, START_MS + second * 1000, most_paid=128)
        paid[second], events[second] = step.paid, step.terms.event[:, 1].sum()
    assert 0.2 < events.sum() / paid.sum() < 0.4
    assert events[120:].sum() / paid[120:].sum() == pytest.approx(0.3, abs=0.06)


def test_paid_at_once_clicks_are_fake_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds above are those of the delayed payment: without it the first day misses them."""
    monkeypatch.setattr(DelayedTerms, "_drawn", lambda self, impression_id, clicked_ms: clicked_ms)
    shop = Shop(1, seed=1)
    (day,), _ = shop.observed_over_expected(shop.run(shop_loop()))
    assert day > 1.1


@pytest.mark.parametrize(("cut", "kill"), [(3, 60), (150, 151), (140, 280), (287, 290)])
def test_killed_at_any_moment_the_weights_are_those_of_one_life(cut: int, kill: int) -> None:
    """A snapshot with waiting clicks and remembered conversions, the journal from there, the rest of the log."""
    shop = Shop(1, seed=3)
    span = shop.log.known_ms // 300_000
    log = [
        (0, offset, shop.log.take(span == at), (at + 1) * 300_000) for offset, at in enumerate(np.unique(span).tolist())
    ]
    whole = shop_loop()
    for p, offset, rows, mark in log[:cut]:
        whole.step(rows, p, offset, mark)
    state = LoopState.from_arrays({name: np.array(one) for name, one in whole.state().to_arrays().items()})
    assert state is not None
    model = DeepFM.from_state(FAST, whole.model.shape, whole.model.state())
    again = LearningLoop(model, CONFIG, 1, state=state)
    assert again.model_step.delayed_clicks == whole.model_step.delayed_clicks
    for p, offset, rows, mark in log[cut:kill]:
        for one in whole.step(rows, p, offset, mark):
            if isinstance(one, Learned):
                again.relearn(one.journal, fetched({(p, at): rows for p, at, rows, _ in log}, one.journal.ranges))
    assert again.model.weights_sha256() == whole.model.weights_sha256()
    start = again.positions()[0].offset if again.positions() else 0
    for p, offset, rows, mark in log[kill:]:
        whole.step(rows, p, offset, mark)
    for p, offset, rows, mark in log[start:]:
        again.step(rows, p, offset, mark)
    assert again.model.weights_sha256() == whole.model.weights_sha256()
    mine, its = again.state().arrays, whole.state().arrays
    assert mine.keys() == its.keys()
    assert all(np.array_equal(mine[name], its[name]) for name in its)
    assert whole.model_step.delayed_clicks > 100


def test_a_rebuild_with_other_settings_comes_to_the_same_weights() -> None:
    """The journal holds the window, the prior and how many paid: a loop of the defaults, or others, needs no more."""
    shop = Shop(1, seed=4)
    config = LearningConfig(
        learn_batch_rows=128, conversion_horizon_s=86_400.0, conversion_delay_median_s=600.0, most_delayed_clicks=300
    )
    whole, again = shop_loop(), shop_loop()
    whole = LearningLoop(whole.model, config, 1)
    log = [(0, 0, shop.log, int(shop.log.known_ms[-1]))]
    outcomes = whole.step(shop.log, 0, 0, log[0][3])
    assert whole.model_step.early_clicks > 0
    for one in outcomes:
        if isinstance(one, Learned):
            again.relearn(one.journal, fetched({(p, at): rows for p, at, rows, _ in log}, one.journal.ranges))
    assert again.model.weights_sha256() == whole.model.weights_sha256()
