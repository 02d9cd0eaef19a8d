"""The measured law of delays against laws that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.delay_law import DelayLaw
from calibration.delay_prior import CONVERSION_PRIOR, MEDIAN_SPREAD, DelayPrior

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
LAWS: dict[str, Draw] = {
    "exponential, 7 s": lambda random, n: random.exponential(7_000.0, n),
    "log-normal, median 6 s": lambda random, n: 6_000.0 * np.exp(random.normal(0.0, 1.0, n)),
    "a fifth an hour late": lambda random, n: np.where(
        random.random(n) < 0.2, random.exponential(3.6e6, n), random.exponential(7_000.0, n)
    ),
}
AGES_MS = np.array([1_000, 3_000, 7_000, 15_000, 40_000, 120_000, 600_000], np.float64)


def true_share(draw: Draw, ages_ms: NDArray[np.float64] = AGES_MS) -> NDArray[np.float64]:
    """F of a law, from a million draws."""
    delays = draw(np.random.default_rng(99), 1_000_000)
    return np.asarray((delays[:, None] <= ages_ms).mean(axis=0))


def clicks(draw: Draw, rates: Iterable[float], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Display times and delays of the clicked displays, at ``rates`` clicks/s, one a second."""
    random = np.random.default_rng(seed)
    ts_ms = np.concatenate(
        [1000 * at + random.integers(0, 1000, random.poisson(rate)) for at, rate in enumerate(rates)]
    )
    return ts_ms.astype(np.int64), draw(random, len(ts_ms)).astype(np.int64)


def seen(law: DelayLaw, ts_ms: NDArray[np.int64], delay_ms: NDArray[np.int64], until_s: int, from_s: int = 0) -> None:
    """Tell the law what comes in each second."""
    known_s = (ts_ms + delay_ms) // 1000
    order = np.argsort(known_s, kind="stable")
    cuts = np.searchsorted(known_s[order], np.arange(from_s, until_s + 1))
    for at, (first, last) in enumerate(pairwise(cuts), start=from_s):
        law.add(ts_ms[order[first:last]], delay_ms[order[first:last]])
        law.advance(1000 * (at + 1))


@pytest.mark.parametrize("name", ["exponential, 7 s", "log-normal, median 6 s"])
def test_two_minutes_after_the_start_the_law_is_known_within_a_few_percent(name: str) -> None:
    """Ten clicks a second: what has been seen is truncated by age, and the law is not."""
    found = []
    for seed in range(4):
        law = DelayLaw()
        seen(law, *clicks(LAWS[name], [10.0] * 120, seed), until_s=120)
        found.append(law.share(AGES_MS))
    assert np.abs(np.mean(found, axis=0) - true_share(LAWS[name])).max() < 0.02
    assert np.abs(found - true_share(LAWS[name])).max() < 0.06


@pytest.mark.parametrize(("median_s", "sigma"), [(0.2, 0.5), (60.0, 1.0), (7_200.0, 2.0), (86_400.0, 1.5)])
def test_conversions_of_any_speed_are_known_for_what_they_are_within_minutes(median_s: float, sigma: float) -> None:
    """What is still to come of four minutes' clicks: nobody told the law whether conversions take seconds or days."""
    random = np.random.default_rng(1)
    ts_ms = random.integers(0, 240_000, 700)
    delay_ms = (1_000 * median_s * np.exp(sigma * random.normal(0, 1, 700))).astype(np.int64)
    law = DelayLaw(30 * 86_400.0, prior=replace(CONVERSION_PRIOR, median_spread=MEDIAN_SPREAD))
    seen(law, ts_ms, delay_ms, until_s=240)
    true = (1_000 * median_s * np.exp(sigma * random.normal(0, 1, (1_000, 1))) <= 240_000 - ts_ms).mean()
    assert law.share(240_000.0 - ts_ms).mean() == pytest.approx(true, abs=0.04)


def test_counting_what_came_instead_would_be_wrong() -> None:
    """The share of short delays among the clicks seen, under a ramp, is too high by more than the law is."""
    draw = LAWS["log-normal, median 6 s"]
    ts_ms, delay_ms = clicks(draw, np.linspace(0.0, 60.0, 60))
    law = DelayLaw()
    seen(law, ts_ms, delay_ms, until_s=60)
    came = delay_ms[ts_ms + delay_ms < 60_000]
    ages = np.array([5_000.0, 10_000.0])
    true = true_share(draw, ages)
    naive = np.abs((came[:, None] <= ages).mean(axis=0) - true)
    assert (naive > 0.05).all()
    assert (np.abs(law.share(ages) - true) < naive / 2).all()


@pytest.mark.parametrize("name", LAWS)
def test_in_steady_state_the_law_is_the_true_one(name: str) -> None:
    """After two hours, late clicks included: those beyond the log's own age stay unknown."""
    law = DelayLaw(horizon_s=7_200.0)
    ts_ms, delay_ms = clicks(LAWS[name], [10.0] * 14_400)
    inside = delay_ms <= 7_200_000
    seen(law, ts_ms[inside], delay_ms[inside], until_s=14_400)
    true = true_share(LAWS[name]) / true_share(LAWS[name], np.array([7.2e6]))
    assert np.abs(law.share(AGES_MS) - true).max() < 0.02


def test_a_silence_and_a_morning_ramp_leave_the_law_as_it_was() -> None:
    """Fifteen minutes of nobody, then traffic that grows tenfold: every minute F stays within 0.03."""
    draw = LAWS["exponential, 7 s"]
    rates = [10.0] * 900 + [0.0] * 900 + np.linspace(3.0, 30.0, 600).tolist()
    ts_ms, delay_ms = clicks(draw, rates)
    law, true = DelayLaw(), true_share(draw)
    seen(law, ts_ms, delay_ms, until_s=900)
    for minute in range(15, 40):
        seen(law, ts_ms, delay_ms, until_s=60 * minute + 60, from_s=60 * minute)
        assert np.abs(law.share(AGES_MS) - true).max() < 0.03, minute


def test_a_law_that_moves_is_followed_within_its_memory() -> None:
    """Delays that become three times as long are measured after a few thousand clicks."""
    short, long = ((lambda random, n, mean=mean: random.exponential(mean, n)) for mean in (5_000.0, 15_000.0))
    law = DelayLaw(memory_events=1_000)
    seen(law, *clicks(short, [10.0] * 1_000), until_s=1_000)
    ts_ms, delay_ms = clicks(long, [10.0] * 1_000)
    seen(law, ts_ms + 1_000_000, delay_ms, until_s=2_000, from_s=1_000)
    assert law.share(np.array([15_000.0])) == pytest.approx(1 - math.exp(-1), abs=0.03)


def test_clicks_that_are_counted_late_count_as_if_they_had_come_in_time() -> None:
    """After an outage of the clicks' topic all come at once, behind the watermark: num and den are the same."""
    ts_ms, delay_ms = clicks(LAWS["exponential, 7 s"], [5.0] * 300)
    early, late = DelayLaw(), DelayLaw()
    early.add(ts_ms, delay_ms)
    early.advance(2_000_000)
    late.advance(2_000_000)
    late.add(ts_ms, delay_ms)
    late.advance(2_000_000)
    np.testing.assert_array_equal(early.share(AGES_MS), late.share(AGES_MS))


def test_without_events_the_law_is_the_prior() -> None:
    """At its edges; between them it is straight in the logarithm of the age."""
    prior = DelayPrior(median_s=20.0, sigma=0.7)
    law = DelayLaw(prior=prior)
    np.testing.assert_allclose(law.share(AGES_MS), prior.share(AGES_MS), atol=2e-3)
    np.testing.assert_allclose(law.quantile(0.5), 20_000.0, rtol=0.01)


EVENTS = st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 200_000)), min_size=1, max_size=60)


def reference(events: list[tuple[int, int]], now_ms: int, horizon_s: float) -> NDArray[np.float64]:
    """F at the edges by the product formula, from single events that all waited until now."""
    law = DelayLaw(horizon_s)
    edges, prior, weight = law.edges_ms.tolist(), law.prior_hazard, law.prior.events
    shares = [1.0]
    for k in range(len(edges) - 1, 1, -1):
        old = [d for t, d in events if t // 32 * 32 + 32 + edges[k] <= now_ms and d <= edges[k]]
        num = sum(d > edges[k - 1] for d in old)
        shares.append(shares[-1] * (1 - (num + weight * prior[k]) / (len(old) + weight)))
    return np.array(shares[::-1])


@settings(deadline=None, max_examples=60)
@given(EVENTS, st.integers(0, 400_000))
def test_the_share_is_the_product_of_the_reverse_hazards(events: list[tuple[int, int]], now_ms: int) -> None:
    """Woodroofe's formula, click by click."""
    law = DelayLaw(400.0)
    law.add(*np.array(events, np.int64).T)
    law.advance(now_ms)
    np.testing.assert_allclose(law.share(law.edges_ms[1:]), reference(events, now_ms, 400.0), atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(EVENTS, st.lists(st.integers(0, 400_000), min_size=1, max_size=5))
def test_it_rises_from_zero_to_one_and_the_quantile_turns_it_round(
    events: list[tuple[int, int]], times: list[int]
) -> None:
    """Whatever was seen, F is a distribution function."""
    law = DelayLaw(3_600.0)
    for now_ms in sorted(times):
        law.add(*np.array(events, np.int64).T)
        law.advance(now_ms)
    ages = np.linspace(-10, 3_700_000, 500)
    shares = law.share(ages)
    assert (np.diff(shares) >= 0).all()
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    u = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(law.share(law.quantile(u)), u, atol=1e-9)


def arrays(law: DelayLaw) -> dict[str, Any]:
    """A law's state, comparable by ==."""
    return {name: (array.shape, array.tobytes()) for name, array in law.state().items()}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(EVENTS, st.booleans()), min_size=2, max_size=6))
def test_workers_add_up_to_the_bits_of_one_and_a_state_goes_on(
    steps: list[tuple[list[tuple[int, int]], bool]],
) -> None:
    """Two laws that share the events merge to the law of all; a law from a state goes on as the one it was taken of."""
    whole, parts, resumed = DelayLaw(), (DelayLaw(), DelayLaw()), DelayLaw()
    for at, (events, which) in enumerate(steps):
        ts_ms, delay_ms = np.array(events, np.int64).T
        for law in (whole, parts[which], resumed):
            law.add(ts_ms, delay_ms)
        for law in (whole, *parts, resumed):
            law.advance(70_000 * at)
        resumed = DelayLaw.from_state(resumed.state())
    merged = parts[0].copy()
    merged.merge(parts[1])
    assert arrays(merged) == arrays(whole) == arrays(resumed)


def test_its_state_stays_small_and_holds_a_day() -> None:
    """A day of late clicks at one a second waits in less than 40 kB."""
    law, random = DelayLaw(), np.random.default_rng(0)
    for minute in range(1, 1_500):
        delay = random.exponential(2e7, 60).astype(np.int64)
        law.add(60_000 * minute - np.minimum(delay, 60_000 * minute), delay)
        law.advance(60_000 * minute)
    assert sum(array.nbytes for array in law.state().values()) < 40_000


def test_delays_that_cannot_be_are_left_out_and_counted() -> None:
    """Negative ones and those beyond the horizon."""
    law = DelayLaw(60.0)
    assert law.add(np.zeros(4, np.int64), np.array([-1, 0, 60_000, 60_001])) == 2
    assert law.events == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DelayLaw(0.1), "horizon_s=0.1"),
        (lambda: DelayLaw(memory_events=0), "memory_events=0"),
        (lambda: DelayPrior(sigma=0.0), r"sigma=0.0 .*default is 1.0"),
        (lambda: DelayLaw().quantile(1.5), "u=1.5"),
        (lambda: DelayLaw().add(np.zeros(2, np.int64), np.zeros(3, np.int64)), "one length"),
        (lambda: DelayLaw(60.0).merge(DelayLaw(61.0)), "horizons 60.0 s and 61.0 s"),
        (lambda: DelayLaw.from_state({}), "no state of a delay law"),
        (lambda: DelayLaw.from_state(DelayLaw().state() | {"counts": np.zeros((2, 3))}), "it was cut"),
    ],
)
def test_what_cannot_mean_anything_is_refused(build: Callable[[], object], message: str) -> None:
    """The message names the value, and what to do."""
    with pytest.raises(ValueError, match=message):
        build()
