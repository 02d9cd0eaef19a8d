"""Displays weigh so that as many clicks are expected as come, in sum."""

from __future__ import annotations

import numpy as np
import pytest

from learners.examples.terms import Terms
from stream.learn.balance import Balance


def learn(balance: Balance, displays: int, clicks: int, p: float) -> float:
    """A batch of displays that the model gives p, and of clicks; what the displays paid."""
    z = np.full(displays + clicks, np.log(p / (1 - p)), np.float32)
    kind = np.arange(displays + clicks) < displays
    paid = displays * p * balance.weight
    balance.learned(z, Terms(kind.astype(np.float32), (~kind).astype(np.float32)))
    return paid


@pytest.mark.parametrize("p", [0.01, 0.02, 0.04])
def test_what_displays_pay_is_what_comes_whatever_the_model_says(p: float) -> None:
    """Models that are right, twice and four times too high, at a true 0.01, displays and clicks in turns."""
    rng, balance = np.random.default_rng(1), Balance()
    paid = clicked = 0.0
    for _ in range(1_000):
        paid += learn(balance, 500, 0, p)
        came = int(rng.poisson(5))
        clicked += came
        learn(balance, 0, came, p)
    assert abs(paid - clicked) < 60
    assert balance.weight == pytest.approx(0.01 / p, abs=0.25)


def test_displays_before_the_first_clicks_weigh_less_and_less() -> None:
    """At a start no more than 50 clicks' worth of displays is paid without a click."""
    balance = Balance()
    paid = sum(learn(balance, 100, 0, 0.02) for _ in range(1_000))
    assert 45 < paid <= 50.1
    assert 0 <= balance.weight < 0.1


def test_a_flood_of_clicks_makes_no_display_weigh_more_than_four() -> None:
    """However many come."""
    balance = Balance()
    learn(balance, 0, 10_000, 0.02)
    assert balance.weight == 4.0


def test_a_restart_goes_on() -> None:
    """With the very weight."""
    balance = Balance()
    learn(balance, 300, 7, 0.05)
    assert Balance(balance.state()).weight == balance.weight != 1.0
