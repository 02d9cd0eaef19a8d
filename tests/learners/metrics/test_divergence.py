"""When a loss counts as diverged, and when it does not although it looks high."""

from __future__ import annotations

import numpy as np
import pytest

from learners.examples.terms import Terms
from learners.metrics.divergence import BatchLoss, LossWatch

ROWS = 128


def batch(logits: float | np.ndarray, rate: float, rng: np.random.Generator, rows: int = ROWS) -> BatchLoss:
    """Exposures and their clicks, which come with probability ``rate``, whatever the logits say."""
    z = np.broadcast_to(np.asarray(logits, np.float32), rows)
    clicked = rng.random(rows) < rate
    return BatchLoss.of(z, Terms(np.ones(rows, np.float32), clicked.astype(np.float32)))


def clicks(logit: float, count: int) -> BatchLoss:
    """A batch of clicks alone."""
    return BatchLoss.of(
        np.full(count, logit, np.float32), Terms(np.zeros(count, np.float32), np.ones(count, np.float32))
    )


def logit(rate: float) -> float:
    """The log-odds."""
    return float(np.log(rate / (1 - rate)))


def alarms(batches: list[BatchLoss]) -> list[int]:
    """The places at which a watch of 20 batches says that something is wrong."""
    watch = LossWatch(ratio=3.0, batches=20)
    return [at for at, one in enumerate(batches) if watch.update(one) is not None]


def test_the_sums_of_a_batch_are_those_of_its_terms() -> None:
    """An exposure pays softplus(z) as many times as it stands for, a click −z."""
    z = np.array([0.0, -2.0, 1.0], np.float32)
    found = BatchLoss.of(z, Terms(np.array([1, 10, 0], np.float32), np.array([0, 0, 1], np.float32)))
    assert found == pytest.approx((11, 1, 0.5 + 10 / (1 + np.exp(2)), np.log(2) + 10 * np.log1p(np.exp(-2)) - 1))
    assert found.log_loss == pytest.approx(found.loss / 11)
    assert np.isnan(clicks(-3.0, 4).log_loss)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.4])
@pytest.mark.parametrize("bias", [0.0, 1.0, -1.0])
def test_a_model_near_the_rate_is_no_alarm(rate: float, bias: float) -> None:
    """The true rate, or a base whose odds are two or three times off, at any click rate."""
    rng = np.random.default_rng(0)
    assert alarms([batch(logit(rate) + bias, rate, rng) for _ in range(300)]) == []


def test_a_model_that_says_one_half_where_a_hundredth_is_true_is_an_alarm() -> None:
    """Its own mean is no excuse: it is compared with the true rate. One that comes down is left alone."""
    rng = np.random.default_rng(0)
    assert alarms([batch(0.0, 0.01, rng) for _ in range(40)])
    falling = [batch(max(logit(0.01), -0.15 * at), 0.01, rng) for at in range(200)]
    assert alarms(falling) == []


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.13])
def test_a_start_whose_clicks_have_not_come_yet_is_no_alarm(rate: float) -> None:
    """A base of twice the rate at a thousand displays a second: the first clicks come after a second or two."""
    rng = np.random.default_rng(0)
    z = logit(2 * rate)
    start = [batch(z, 0.0, rng) for _ in range(25)]
    assert alarms(start + [batch(z, rate / 4, rng) for _ in range(25)] + [batch(z, rate, rng) for _ in range(50)]) == []


def test_a_stretch_of_clicks_alone_is_no_alarm() -> None:
    """At the start of a stream, and after a long time at one in a hundred: a right model pays much for each."""
    rng = np.random.default_rng(0)
    alone = [clicks(logit(0.01), 1) for _ in range(100)]
    assert alarms(alone) == []
    assert alarms([batch(logit(0.01), 0.01, rng) for _ in range(200)] + alone) == []


@pytest.mark.parametrize("late", [10, 64, 120])
def test_a_flood_of_late_clicks_is_no_alarm(late: int) -> None:
    """Clicks of displays that were learned long ago come among few others."""
    rng = np.random.default_rng(0)
    usual = [batch(logit(0.01), 0.01, rng) for _ in range(600)]
    flood = [one for _ in range(30) for one in (batch(logit(0.01), 0.01, rng, ROWS - late), clicks(logit(0.01), late))]
    assert alarms(usual + flood + usual) == []


def test_confident_and_wrong_is_an_alarm_after_so_many_batches() -> None:
    """Logits of ± 10 at random: the twentieth batch says so, with the figures."""
    rng = np.random.default_rng(0)
    batches = [batch(rng.choice([-10.0, 10.0], ROWS), 0.3, rng) for _ in range(25)]
    assert alarms(batches)[0] == 19
    watch = LossWatch(ratio=3.0, batches=1)
    assert "more than 3 times the " in (watch.update(batches[0]) or "")


@pytest.mark.parametrize("z", [-60.0, 60.0])
def test_a_collapse_to_certainty_is_an_alarm(z: float) -> None:
    """After a time in which the model was right, as well as from the start."""
    rng = np.random.default_rng(0)
    collapsed = [batch(z, 0.02, rng) for _ in range(30)]
    assert alarms(collapsed)
    assert alarms([batch(logit(0.02), 0.02, rng) for _ in range(100)] + collapsed)


def test_a_bad_stretch_that_ends_in_time_is_none() -> None:
    """Ten wrong batches among right ones stay below the bound of twenty."""
    rng = np.random.default_rng(0)
    right, wrong = [[batch(z, 0.3, rng) for _ in range(10)] for z in (-0.85, -6.0)]
    assert alarms(right + wrong + right) == []


def test_a_loss_that_is_no_number_is_an_alarm() -> None:
    """NaN compares with nothing, and is beyond every bound."""
    watch = LossWatch(ratio=3.0, batches=1)
    assert watch.update(BatchLoss(1, 0, float("nan"), float("nan"))) is not None


def test_batches_without_exposures_and_clicks_do_not_count() -> None:
    """Conversions alone say nothing about the loss."""
    watch = LossWatch(ratio=3.0, batches=1)
    assert watch.update(BatchLoss(0, 0, 0.0, 0.0)) is None
    assert watch.state().batches == []


def test_what_is_held_goes_on_elsewhere() -> None:
    """A watch restored in the middle gives the alarm at the same batch."""
    rng = np.random.default_rng(0)
    batches = [batch(rng.choice([-10.0, 10.0], ROWS), 0.3, rng) for _ in range(20)]
    first = LossWatch(ratio=3.0, batches=20)
    assert [first.update(one) for one in batches[:12]] == [None] * 12
    second = LossWatch(ratio=3.0, batches=20, state=first.state())
    assert [second.update(one) is not None for one in batches[12:]] == [False] * 7 + [True]
