"""When a loss counts as diverged, and when it does not although it looks high."""

from __future__ import annotations

import numpy as np
import pytest

from learners.metrics import losses, probability
from stream.loss_watch import BatchLoss, LossWatch

ROWS = 128


def batch(logits: float | np.ndarray, rate: float, rng: np.random.Generator, rows: int = ROWS) -> BatchLoss:
    """A batch whose labels are clicks with probability ``rate``, whatever the logits say."""
    z = np.broadcast_to(np.asarray(logits, np.float64), rows)
    labels = rng.random(rows) < rate
    return BatchLoss(rows, int(labels.sum()), float(probability(z).sum()), float(losses(z, labels).sum()))


def alarms(batches: list[BatchLoss]) -> list[int]:
    """The places at which a watch of 20 batches says that something is wrong."""
    watch = LossWatch(ratio=3.0, batches=20)
    return [at for at, one in enumerate(batches) if watch.update(one) is not None]


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.4])
@pytest.mark.parametrize("start", ["fresh", "trained"])
def test_a_model_that_says_the_same_everywhere_is_no_alarm(rate: float, start: str) -> None:
    """Neither one half of a fresh model nor the right rate, at any click rate."""
    rng = np.random.default_rng(0)
    logit = 0.0 if start == "fresh" else float(np.log(rate / (1 - rate)))
    assert alarms([batch(logit, rate, rng) for _ in range(200)]) == []


def test_a_stretch_of_clicks_alone_is_no_alarm() -> None:
    """Live, clicks are known before the first rows without: a right model loses much on each of them."""
    rng = np.random.default_rng(0)
    assert alarms([batch(float(np.log(0.01)), 1.0, rng, rows=1) for _ in range(100)]) == []


def test_confident_and_wrong_is_an_alarm_after_so_many_batches() -> None:
    """Logits of ± 10 at random: the twentieth batch says so, with the figures."""
    rng = np.random.default_rng(0)
    batches = [batch(rng.choice([-10.0, 10.0], ROWS), 0.3, rng) for _ in range(25)]
    assert alarms(batches)[0] == 19
    watch = LossWatch(ratio=3.0, batches=1)
    assert "more than 3 times the 0." in (watch.update(batches[0]) or "")


@pytest.mark.parametrize("logit", [-60.0, 60.0])
def test_a_collapse_to_certainty_is_an_alarm(logit: float) -> None:
    """The same certainty everywhere is its own mean; the constant it is held against is kept from certainty."""
    rng = np.random.default_rng(0)
    assert alarms([batch(logit, 0.02, rng) for _ in range(30)])


def test_a_bad_stretch_that_ends_in_time_is_none() -> None:
    """Ten wrong batches among right ones stay below the bound of twenty."""
    rng = np.random.default_rng(0)
    right, wrong = [[batch(z, 0.3, rng) for _ in range(10)] for z in (-0.85, -6.0)]
    assert alarms(right + wrong + right) == []


def test_a_loss_that_is_no_number_is_an_alarm() -> None:
    """NaN compares with nothing, and is beyond every bound."""
    watch = LossWatch(ratio=3.0, batches=1)
    assert watch.update(BatchLoss(1, 0, float("nan"), float("nan"))) is not None


def test_batches_without_settled_rows_do_not_count() -> None:
    """Corrections alone say nothing about the loss."""
    watch = LossWatch(ratio=3.0, batches=1)
    assert watch.update(BatchLoss(0, 0, 0.0, 0.0)) is None
    assert watch.held() == []


def test_what_is_held_goes_on_elsewhere() -> None:
    """A watch restored in the middle gives the alarm at the same batch."""
    rng = np.random.default_rng(0)
    batches = [batch(rng.choice([-10.0, 10.0], ROWS), 0.3, rng) for _ in range(20)]
    first = LossWatch(ratio=3.0, batches=20)
    assert [first.update(one) for one in batches[:12]] == [None] * 12
    second = LossWatch(ratio=3.0, batches=20, held=first.held())
    assert [second.update(one) is not None for one in batches[12:]] == [False] * 7 + [True]
