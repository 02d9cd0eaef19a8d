"""The built-in marketplace simulator."""

from __future__ import annotations

import numpy as np
import pytest

from replay.marketplace import Marketplace, MarketplaceConfig

SMALL = MarketplaceConfig(day_count=2, requests_per_day=800, users=300)


def test_the_same_seed_gives_the_same_marketplace() -> None:
    """Requests and outcomes are functions of the seed alone."""
    one, two = Marketplace(SMALL), Marketplace(SMALL)
    first, second = list(one.requests(0, 2**62)), list(two.requests(0, 2**62))
    assert first == second
    assert [one.displays(r, range(12)) for r in first[:200]] == [two.displays(r, range(12)) for r in second[:200]]


def test_an_ads_outcome_does_not_depend_on_the_other_ads_shown() -> None:
    """Click and conversion of (request, ad) are the same in first and in last position."""
    market = Marketplace(SMALL)
    for request in list(market.requests(0, 2**62))[:300]:
        first = market.displays(request, [5, 1, 2])[0]
        last = market.displays(request, [1, 2, 5])[2]
        assert (first.click_ms, first.conversion_ms) == (last.click_ms, last.conversion_ms)


def test_clicks_follow_the_known_truth() -> None:
    """Over many displays, clicks are as frequent as their true probabilities add up to (within 4 standard errors)."""
    market = Marketplace(SMALL)
    clicks = expected = variance = 0.0
    for request in market.requests(0, 2**62):
        p = market.click_probability(request)
        shown = market.displays(request, [0, 1, 2])
        clicks += sum(d.click_ms is not None for d in shown)
        expected += p[:3].sum()
        variance += (p[:3] * (1 - p[:3])).sum()
    assert abs(clicks - expected) < 4 * np.sqrt(variance)


def test_requests_come_in_time_order_and_as_many_as_counted() -> None:
    """A day holds the configured number of requests, sorted, with the configured number of distinct live ads."""
    market = Marketplace(SMALL)
    span = market.days().span_ms(1, 1)
    requests = list(market.requests(*span))
    times = [r.ts_ms for r in requests]
    assert times == sorted(times)
    assert len(requests) == market.count(*span) == 800
    assert all(span[0] <= t < span[1] for t in times)
    assert all(len({ad["ad_id"] for ad in r.ads}) == SMALL.candidates for r in requests)


@pytest.mark.parametrize("wrong", [{"top_k": 13}, {"candidates": 500}, {"users": 0}])
def test_an_impossible_marketplace_is_refused(wrong: dict[str, int]) -> None:
    """The error names the values that do not fit together."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MarketplaceConfig(**wrong)
