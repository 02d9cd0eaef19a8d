"""Down-sampling, class weights and what they cost in log-odds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.sampling import ClassBalance


def test_all_clicks_and_the_wanted_share_of_non_clicks_are_kept() -> None:
    """Within what a binomial allows."""
    ids = np.arange(100_000, dtype=np.uint64)
    clicked = ids % 10 == 0
    kept = ClassBalance(negative_rate=0.25).kept(ids, clicked, seed=0)
    assert kept[clicked].all()
    assert abs(float(kept[~clicked].mean()) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 90_000)


def test_an_impression_is_kept_or_not_wherever_it_stands() -> None:
    """Order and neighbours do not matter; the seed does."""
    ids = np.random.default_rng(1).integers(1, 2**63, 5_000).astype(np.uint64)
    clicked = np.zeros(5_000, np.bool_)
    balance = ClassBalance(negative_rate=0.5)
    kept = balance.kept(ids, clicked, seed=3)
    assert np.array_equal(balance.kept(ids[::-1], clicked, seed=3)[::-1], kept)
    assert abs(float((balance.kept(ids, clicked, seed=4) == kept).mean()) - 0.5) < 0.04


@given(rate=st.floats(0.01, 1), weight=st.floats(0.1, 10), clicks=st.integers(1, 1000), others=st.integers(1, 1000))
def test_the_shift_gives_back_the_odds_of_all_impressions(rate: float, weight: float, clicks: int, others: int) -> None:
    """What minimises the weighted log loss of the sample is, shifted, the log-odds of the whole."""
    learned = np.log(weight * clicks / (rate * others))
    balance = ClassBalance(negative_rate=rate, click_weight=weight)
    assert learned + balance.log_odds_shift == pytest.approx(np.log(clicks / others), abs=1e-9)


def test_importance_weights_need_no_shift() -> None:
    """A click that weighs as much as the share of kept non-clicks leaves the odds as they are."""
    assert ClassBalance(negative_rate=0.2, click_weight=0.2).log_odds_shift == pytest.approx(0)
    assert ClassBalance().log_odds_shift == 0


def test_only_clicks_are_weighted() -> None:
    """For one head and for several."""
    clicked, balance = np.array([True, False]), ClassBalance(click_weight=3)
    assert balance.weight(clicked, np.array([2, 2], np.float32)).tolist() == [6, 2]
    weighted = balance.weight(clicked, np.ones((2, 2), np.float32))
    assert weighted.tolist() == [[3, 3], [1, 1]]
    assert weighted.dtype == np.float32


@pytest.mark.parametrize("wrong", [{"negative_rate": 0.0}, {"negative_rate": 1.1}, {"click_weight": 0.0}])
def test_a_balance_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    """The message names the field and the value."""
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        ClassBalance(**wrong)
