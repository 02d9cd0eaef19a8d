"""The world with a known truth: rates, delays, determinism, and ids as the product encodes them."""

from __future__ import annotations

import numpy as np
import pytest

from learners.features.encode import Encoder, Request
from replay.market_laws import INSTALLS, PLACEMENTS, PURCHASES, DelayLaw, click_delay_s
from replay.truth_world import Requests, World, WorldConfig

MARKET = WorldConfig(seed=3, ctr=0.02, launched_ads=20)
SECONDS = range(40)


def drawn(world: World, *, requests: int = 2_000) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """True click and conversion probabilities of many displays, and what users did with them."""
    clicks, buys, reactions = [], [], []
    for second in SECONDS:
        rng = world.rng(second)
        shown = world.requests(rng, requests, 3)
        clicks.append(world.click_probability(shown).ravel())
        buys.append(world.conversion_probability(shown).ravel())
        reaction = world.react(rng, clicks[-1], buys[-1])
        reactions.append(np.stack([reaction.click_delay_ms, np.isin(reaction.clicked, reaction.converted)]))
    return np.concatenate(clicks), np.concatenate(buys), reactions


@pytest.mark.parametrize("ctr", [0.005, 0.02, 0.10])
def test_the_click_rate_is_the_one_asked_for(ctr: float) -> None:
    """True probabilities of random displays have that mean within 2 %, and clicks follow them (4 standard errors)."""
    p, _, reactions = drawn(World(WorldConfig(seed=3, ctr=ctr)))
    assert p.mean() == pytest.approx(ctr, rel=0.02)
    clicks = sum(found.shape[1] for found in reactions)
    assert abs(clicks - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_conversions_follow_their_truth() -> None:
    """A tenth of the clicks converts, within 4 standard errors."""
    _, _, reactions = drawn(World(WorldConfig(seed=3, ctr=0.1)))
    converted = np.concatenate([found[1] for found in reactions])
    assert abs(converted.mean() - 0.10) < 4 * np.sqrt(0.09 / len(converted)) + 0.002  # levels are solved on a sample


def test_doubling_the_click_rate_doubles_the_truth() -> None:
    """The shift that is solved for twice the rate makes it so within 2 %."""
    world = World(MARKET)
    world.click_shift = world.shift_to(0.04)
    assert drawn(world)[0].mean() == pytest.approx(0.04, rel=0.02)


def test_half_of_the_clicks_come_within_six_seconds_and_the_late_share_after_half_an_hour() -> None:
    """Click delays have the published median; late ones are as many as asked for."""
    world = World(WorldConfig(seed=3, ctr=0.05, late_share=0.2))
    delay_s = np.concatenate([found[0] for found in drawn(world)[2]]) / 1000
    late = delay_s > 1_500
    assert late.mean() == pytest.approx(0.2, abs=0.02)
    assert np.median(delay_s[~late]) == pytest.approx(6.0, rel=0.05)


def test_published_laws_of_conversions() -> None:
    """Installs: 73 % within an hour; purchases: 35 % within an hour, half within a day, 13 % after two weeks."""
    u = (np.arange(100_000) + 0.5) / 100_000
    installs, purchases = INSTALLS.quantile_s(u), PURCHASES.quantile_s(u)
    assert np.mean(installs <= 3_600) == pytest.approx(0.73, abs=1e-3)
    assert np.mean(purchases <= 3_600) == pytest.approx(0.35, abs=1e-3)
    assert np.mean(purchases <= 86_400) == pytest.approx(0.50, abs=1e-3)
    assert np.mean(purchases > 14 * 86_400) == pytest.approx(0.13, abs=1e-3)


def test_a_law_is_the_inverse_of_its_shares() -> None:
    """The share that comes within a quantile is the quantile's."""
    law = DelayLaw((1.0, 10.0, 100.0), (0.0, 0.5, 1.0))
    u = np.linspace(0, 1, 11)
    assert np.allclose(law.share_within(law.quantile_s(u)), u)
    assert click_delay_s(0.5, 7.0) == pytest.approx(7.0)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    """Requests, probabilities and reactions hang on the seed and the second alone."""
    one, two, other = World(MARKET), World(MARKET), World(WorldConfig(seed=4, ctr=0.02))
    two.requests(two.rng(1), 500, 12)  # what was drawn before changes nothing
    first, second, third = (world.requests(world.rng(7), 100, 3) for world in (one, two, other))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(one.click_probability(first), two.click_probability(second))
    assert not np.array_equal(first.ads, third.ads)


def test_ads_that_are_launched_later_change_nothing_of_those_that_are_there() -> None:
    """A market with launches has the same live ads and users as one without."""
    with_launch, without = World(MARKET), World(WorldConfig(seed=3, ctr=0.02))
    shown = with_launch.requests(with_launch.rng(0), 200, 3)
    assert np.array_equal(with_launch.click_probability(shown), without.click_probability(shown))


def test_a_launch_takes_its_share_of_the_candidates() -> None:
    """A fifth of the displays is of launched ads, evenly among them; without a launch none is."""
    world = World(MARKET)
    launched = np.arange(200, 220)
    ads = world.requests(world.rng(0), 20_000, 3, launched, 0.2).ads
    assert np.mean(ads >= 200) == pytest.approx(0.2, abs=0.01)
    assert np.bincount(ads[ads >= 200] - 200, minlength=20).min() > 450  # of 600
    assert world.requests(world.rng(0), 20_000, 3).ads.max() < 200


def test_candidates_of_a_request_are_different_and_every_ad_comes_as_often() -> None:
    """Twelve different ads a request; each ad within 4 standard errors of its share."""
    world = World(MARKET)
    ads = world.requests(world.rng(0), 20_000, 12).ads
    assert (np.diff(np.sort(ads, axis=1), axis=1) > 0).all()
    count = np.bincount(ads.ravel(), minlength=200)
    assert np.abs(count - 1_200).max() < 4 * np.sqrt(1_200)


def test_an_ad_shown_higher_is_clicked_more() -> None:
    """The first slot is better than the second, that than the third."""
    world = World(MARKET)
    shown = world.requests(world.rng(0), 1_000, 3)
    upside_down = shown.take(np.tile([2, 1, 0], (1_000, 1)))
    first, last = world.click_probability(shown)[:, 0], world.click_probability(upside_down)[:, 2]
    assert (first > last).all()


def test_the_truth_is_no_sum_of_effects() -> None:
    """Log-odds of two segments differ by another amount from category to category: only an interaction does that."""
    world = World(MARKET)
    ads = np.arange(200)
    users = [int(np.flatnonzero(world.segment == segment)[0]) for segment in (0, 1)]
    logits = []
    for user in users:
        p = world.click_probability(Requests(np.full(200, user), np.zeros(200, np.intp), ads[:, None])).ravel()
        logits.append(np.log(p / (1 - p)))
    assert np.std(logits[0] - logits[1]) > 0.2


def test_ids_are_those_that_the_encoder_makes() -> None:
    """Rows made by the hundred thousand are the ones that serving would make of the same requests, one by one."""
    world = World(MARKET)
    shown = world.requests(world.rng(0), 50, 3, np.arange(200, 220), 0.3)
    ts_ms = 1_767_600_000_000 + np.arange(50)
    fast = world.encoded(shown, 1, ts_ms)
    requests = [
        Request(
            request_id=1 + at,
            ts_ms=int(ts_ms[at]),
            user={"user_id": int(user), "segment": int(world.segment[user])},
            context={"placement": PLACEMENTS[shown.placement[at]]},
            ads=[world.ad_attributes(int(ad)) for ad in shown.ads[at]],
        )
        for at, user in enumerate(shown.user.tolist())
    ]
    slow = Encoder(world.spec).ids(requests)
    for name, a, b in zip(fast._fields, fast, slow, strict=True):
        assert np.array_equal(a, b), name


@pytest.mark.parametrize("wrong", [{"ctr": 0.0}, {"ctr": 0.7}, {"cvr": -1.0}, {"live_ads": 2}, {"late_share": 2.0}])
def test_an_impossible_world_is_refused(wrong: dict[str, float]) -> None:
    """The error names the value."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WorldConfig(**{"seed": 1, "ctr": 0.01, **wrong})  # type: ignore[arg-type]
