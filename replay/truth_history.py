"""What was displayed before a scenario: clicks and conversions that come only after the start, and what the map saw.

The first base knows these displays. That their events come late must not look as if nobody had displayed anything, and
the calibration has been counting all the while: a system that runs is observed, not one that was started a second ago.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.terms import Terms
from replay.market_laws import click_delay_s
from replay.truth_cores import Cores, example_rows
from replay.truth_inputs import EventsOnTheirWay
from replay.truth_world import Reactions, Requests, World, WorldConfig
from stream.learn.delayed_terms import DelayedTerms
from stream.records.examples import ExampleRows, concat
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS

_CHUNK_REQUESTS = 50_000
_DAYS_HISTORY_STEPS = 150
_CHUNK_S = 20.0
_LEAST_HISTORY_S = 600.0
_HISTORY_PER_DELAY = 1.25  # a law of delays knows an age once clicks are older
_CLICKS_LEFT_OUT = 1e-4  # the latest ones
_PROBABILITY_MARGIN = 1.5  # over the highest among some displays, so that hardly any lies above


class Clicked(NamedTuple):
    """D displays of the past that were or will be clicked, as requests of one ad."""

    requests: Requests
    display_ms: NDArray[np.int64]  # (D,)
    click_ms: NDArray[np.int64]  # (D,)
    conversion_ms: NDArray[np.int64]  # (D,) 0: none
    value: NDArray[np.float32]  # (D,)

    @classmethod
    def of(cls, requests: Requests, display_ms: NDArray[np.int64], reactions: Reactions) -> Clicked:
        """Of displays (R x K of ``requests``, display_ms (R x K,)) those that were clicked."""
        which, slots = reactions.clicked, requests.ads.shape[1]
        conversion_ms, value = np.zeros(len(which), np.int64), np.zeros(len(which), np.float32)
        at = np.searchsorted(which, reactions.converted)
        conversion_ms[at] = display_ms[reactions.converted] + reactions.conversion_delay_ms
        value[at] = reactions.value
        row = which // slots
        one_each = Requests(requests.user[row], requests.placement[row], requests.ads.ravel()[which][:, None])
        return cls(one_each, display_ms[which], display_ms[which] + reactions.click_delay_ms, conversion_ms, value)

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Clicked:
        """Some of them."""
        return Clicked(
            Requests(*(column[which] for column in self.requests)),
            self.display_ms[which],
            self.click_ms[which],
            self.conversion_ms[which],
            self.value[which],
        )

    def joined(self, other: Clicked) -> Clicked:
        """These and others."""
        return Clicked(
            Requests(*map(np.concatenate, zip(self.requests, other.requests, strict=True))),
            np.concatenate((self.display_ms, other.display_ms)),
            np.concatenate((self.click_ms, other.click_ms)),
            np.concatenate((self.conversion_ms, other.conversion_ms)),
            np.concatenate((self.value, other.value)),
        )


def history_before(
    world: World,
    cores: Cores,
    ways: Mapping[str, EventsOnTheirWay],
    displays_per_s: float,
    start_ms: int,
    *,
    conversions: bool,
) -> None:
    """Tell the join what was displayed and clicked before ``start_ms``, and put on its way what comes after."""
    if conversions:
        kept = _counted_days(world, cores, displays_per_s, start_ms)
    else:
        kept = _counted(world, cores, displays_per_s, start_ms)
    kept = kept.take(np.argsort(kept.display_ms, kind="stable"))
    scored = cores.score(world.encoded(kept.requests, 1 << 40, kept.display_ms))
    cores.served(scored)
    ids, users = scored.impression_id, scored.ids.user_key
    ways[IMPRESSIONS].add(kept.display_ms, ids, users)
    ways[CLICKS].add(kept.click_ms, ids, users)
    if conversions:
        bought = kept.conversion_ms > 0
        ways[CONVERSIONS].add(kept.conversion_ms[bought], ids[bought], users[bought], value=kept.value[bought])
    for topic, way in ways.items():
        cores.events(topic, way.take_until(start_ms))
    cores.join(start_ms)
    cores.publish()


def _counted(world: World, cores: Cores, displays_per_s: float, start_ms: int) -> Clicked:
    """Let the calibration count what was displayed and clicked; what will be clicked only after the start."""
    under_way: Clicked | None = None
    for end_ms, requests, display_ms in _displayed(world, displays_per_s, start_ms):
        clicked = Clicked.of(requests, display_ms, _reacted(world, requests, end_ms))
        under_way = clicked if under_way is None else under_way.joined(clicked)
        now = under_way.click_ms < end_ms
        come, under_way = under_way.take(now), under_way.take(~now)
        slots = requests.ads.shape[1]
        exposed = example_rows(cores.score(world.encoded(requests, 1 << 40, display_ms[::slots])), EXPOSURE)
        cores.count(concat([exposed, _click_rows(world, cores, come)]), end_ms)
    assert under_way is not None
    return under_way


def _displayed(world: World, displays_per_s: float, start_ms: int) -> Iterator[tuple[int, Requests, NDArray[np.int64]]]:
    """Everything displayed before the start, in stretches: their ends, requests, and display times (R x K,)."""
    slots = world.config.slots
    stretches = int(np.ceil(max(_past_s(world.config), _LEAST_HISTORY_S) / _CHUNK_S))
    stretch_ms = round(_CHUNK_S * 1000)
    for stretch in range(stretches):
        begin_ms = start_ms - (stretches - stretch) * stretch_ms
        rng = world.rng(1 << 20, stretch)
        requests = world.requests(rng, int(rng.poisson(displays_per_s * _CHUNK_S / slots)), slots)
        at_ms = np.sort(begin_ms + rng.integers(0, stretch_ms, len(requests.user)))
        yield begin_ms + stretch_ms, requests, np.repeat(at_ms, slots)


def _reacted(world: World, requests: Requests, end_ms: int) -> Reactions:
    rng = world.rng(1 << 21, end_ms % (1 << 31))
    return world.react(rng, world.click_probability(requests).ravel(), world.conversion_probability(requests).ravel())


def _click_rows(world: World, cores: Cores, clicked: Clicked) -> ExampleRows:
    scored = cores.score(world.encoded(clicked.requests, 1 << 40, clicked.display_ms))
    return example_rows(scored, CLICK, clicked.click_ms, clicked.click_ms - clicked.display_ms)


def _conversion_rows(world: World, cores: Cores, clicked: Clicked) -> ExampleRows:
    scored = cores.score(world.encoded(clicked.requests, 1 << 40, clicked.display_ms))
    return example_rows(scored, CONVERSION, clicked.conversion_ms, clicked.conversion_ms - clicked.click_ms)


def _past_s(config: WorldConfig) -> float:
    """How long before the start a display can be clicked only after it; twice that where clicks are late."""
    return 2 * config.late_s[1] if config.late_share else float(click_delay_s(1 - _CLICKS_LEFT_OUT))


def _counted_days(world: World, cores: Cores, displays_per_s: float, start_ms: int) -> Clicked:
    """Let calibration and learner see the clicks and conversions of the past; what comes only after the start."""
    clicked = _clicked_of_days(world, displays_per_s, start_ms)
    config, heads = cores.loop.config, cores.loop.model.heads.names
    owed = DelayedTerms(config.conversion_delays, most_rows=config.most_delayed_clicks)
    first_ms = int(clicked.click_ms.min())
    by_click, by_conversion = np.argsort(clicked.click_ms), np.argsort(clicked.conversion_ms)
    ends_ms = np.linspace(first_ms, start_ms, _DAYS_HISTORY_STEPS + 1)[1:].astype(np.int64)
    clicks_until = np.searchsorted(clicked.click_ms[by_click], ends_ms)
    bought_until = np.searchsorted(clicked.conversion_ms[by_conversion], ends_ms)
    clicks_from, bought_from = 0, int(np.count_nonzero(clicked.conversion_ms == 0))
    for end_ms, clicks_to, bought_to in zip(ends_ms.tolist(), clicks_until, bought_until, strict=True):
        clicks = clicked.take(by_click[clicks_from:clicks_to])
        bought = clicked.take(by_conversion[bought_from:bought_to])
        clicks_from, bought_from = clicks_to, bought_to
        rows = concat([_click_rows(world, cores, clicks), _conversion_rows(world, cores, bought)])
        cores.count(rows, end_ms)
        owed.step(rows, Terms.of_kinds(rows.kind, heads), heads, end_ms, most_paid=len(clicked.click_ms))
    cores.go_on_owing(owed)
    return clicked.take((clicked.click_ms >= start_ms) | (clicked.conversion_ms >= start_ms))


def _clicked_of_days(world: World, displays_per_s: float, start_ms: int) -> Clicked:
    """The clicked displays of as long as conversions take, without drawing the others.

    By thinning: displays are drawn as often as the highest click probability, and kept with their own over it.
    """
    rng, slots = np.random.default_rng([world.config.seed, 4]), world.config.slots
    past_s = _HISTORY_PER_DELAY * world.config.conversion_delay.within_s[-1]
    sample = world.requests(rng, _CHUNK_REQUESTS, slots)
    highest = min(float(world.click_probability(sample).max()) * _PROBABILITY_MARGIN, 1.0)
    left = int(rng.poisson(displays_per_s / slots * past_s * highest))
    found: Clicked | None = None
    while left > 0:
        requests = world.requests(rng, min(left, _CHUNK_REQUESTS), slots)
        left -= len(requests.user)
        display_ms = start_ms - (rng.random(requests.ads.size) * past_s * 1000).astype(np.int64) - 1
        p = np.minimum(world.click_probability(requests).ravel() / highest, 1.0)
        reactions = world.react(rng, p, world.conversion_probability(requests).ravel())
        clicked = Clicked.of(requests, display_ms, reactions)
        found = clicked if found is None else found.joined(clicked)
    assert found is not None
    return found
