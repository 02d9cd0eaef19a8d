"""Down-sampling, and the weights that keep the odds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.training.sampling import NegativeSampling


def test_all_clicks_and_the_wanted_share_of_non_clicks_are_kept() -> None:
    """Within what a binomial allows."""
    ids = np.arange(100_000, dtype=np.uint64)
    clicked = ids % 10 == 0
    kept = NegativeSampling(negative_rate=0.25).kept(ids, clicked, seed=0)
    assert kept[clicked].all()
    assert abs(float(kept[~clicked].mean()) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 90_000)


def test_an_impression_is_kept_or_not_wherever_it_stands() -> None:
    """Order and neighbours do not matter; the seed does."""
    ids = np.random.default_rng(1).integers(1, 2**63, 5_000).astype(np.uint64)
    clicked = np.zeros(5_000, np.bool_)
    sampling = NegativeSampling(negative_rate=0.5)
    kept = sampling.kept(ids, clicked, seed=3)
    assert np.array_equal(sampling.kept(ids[::-1], clicked, seed=3)[::-1], kept)
    assert abs(float((sampling.kept(ids, clicked, seed=4) == kept).mean()) - 0.5) < 0.04


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0.02, 1), ctr=st.floats(0.02, 0.5))
def test_the_weighted_sample_has_the_odds_of_all_impressions(rate: float, ctr: float) -> None:
    """What minimises its log loss, clicks over weighed non-clicks, is within what the hash's binomial allows."""
    ids = np.arange(200_000, dtype=np.uint64)
    clicked = ids < int(ctr * len(ids))
    sampling = NegativeSampling(negative_rate=rate)
    kept = sampling.kept(ids, clicked, seed=1)
    weight = sampling.weight(clicked[kept], np.ones(int(kept.sum()), np.float32)).astype(np.float64)
    found = np.log(weight[clicked[kept]].sum() / weight[~clicked[kept]].sum())
    non_clicks = int((~clicked).sum())
    deviation = np.sqrt((1 - rate) / (rate * non_clicks))
    assert abs(found - np.log(clicked.sum() / non_clicks)) < 5 * deviation + 1e-5


def test_only_non_clicks_are_weighted() -> None:
    """For one head and for several."""
    clicked, sampling = np.array([True, False]), NegativeSampling(negative_rate=0.25)
    assert sampling.weight(clicked, np.array([2, 2], np.float32)).tolist() == [2, 8]
    weighted = sampling.weight(clicked, np.ones((2, 2), np.float32))
    assert weighted.tolist() == [[1, 1], [4, 4]]
    assert weighted.dtype == np.float32


@pytest.mark.parametrize("wrong", [0.0, 1.1])
def test_a_rate_that_means_nothing_is_refused(wrong: float) -> None:
    """The message names the field and the value."""
    with pytest.raises(ValueError, match=f"negative_rate={wrong}"):
        NegativeSampling(negative_rate=wrong)
