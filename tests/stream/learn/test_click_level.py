"""The level follows the click rate as fast as clicks allow, whatever traffic does, and stays where nothing changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.delay_law import DelayLaw
from calibration.logistic import sigmoid
from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import Terms
from replay.market_laws import click_delay_s
from stream.learn.click_level import ClickLevel
from stream.records.examples import ExampleRows
from stream.records.validity import term_weight
from tests.stream.pipeline import START_MS, example_rows

P = 0.05


class Market:
    """Displays of one click rate, learned each second by a model that has nothing but its bias."""

    def __init__(self, seed: int, bias: float = 0.0, late_share: float = 0.0, exposure_rate: float = 1.0) -> None:
        self.level, self.bias, self.late_share, self.exposure_rate = ClickLevel(), bias, late_share, exposure_rate
        self.law = DelayLaw()
        self.rng = np.random.default_rng(seed)
        self.second = 0
        self._to_come = np.zeros((2, 0), np.int64)  # display, click

    @property
    def logit(self) -> float:
        """What the model says of each display."""
        return math.log(P / (1 - P)) + self.bias

    @property
    def off(self) -> float:
        """Served p over P."""
        return float(sigmoid(np.array(self.logit))) / P

    def run(self, seconds: int, displays: int, ctr: float = P, clicks_come: bool = True) -> NDArray[np.float64]:
        """The served p over P after each second."""
        found = []
        for _ in range(seconds):
            now_ms = START_MS + self.second * 1000
            shown = np.sort(self.rng.integers(now_ms, now_ms + 1000, displays))
            clicked = shown[self.rng.random(displays) < ctr]
            delay_s = click_delay_s(self.rng.random(len(clicked)))
            delay_s[self.rng.random(len(clicked)) < self.late_share] = 900.0
            if clicks_come:
                coming = np.stack([clicked, clicked + (delay_s * 1000).astype(np.int64)])
                self._to_come = np.concatenate([self._to_come, coming], axis=1)
            come = self._to_come[1] < now_ms + 1000
            self._step(shown, self._to_come[:, come], now_ms + 1000)
            self._to_come = self._to_come[:, ~come]
            self.second += 1
            found.append(self.off)
        return np.array(found)

    def _step(self, shown: NDArray[np.int64], come: NDArray[np.int64], watermark_ms: int) -> None:
        displayed, clicked = come
        if self.exposure_rate < 1:
            shown = shown[self.rng.random(len(shown)) < self.exposure_rate]
        kind = np.repeat(np.array([EXPOSURE, CLICK], np.uint8), [len(shown), len(clicked)])
        rows: ExampleRows = example_rows(len(kind), seed=0, kind=kind)
        rows.ts_ms[...] = np.concatenate([shown, displayed])
        rows.known_ms[...] = np.concatenate([shown, clicked])
        rows.delay_ms[...] = rows.known_ms - rows.ts_ms
        logits = np.full(len(rows), self.logit, np.float32)
        terms = Terms.of_kinds(kind, ("click",), term_weight(kind, self.exposure_rate))
        self.bias += self.level.step(rows, logits, terms, self.law, watermark_ms)
        self.law.add(displayed, clicked - displayed)
        self.law.advance(watermark_ms)


def test_a_steady_level_is_left_alone() -> None:
    """Within what 1,000 clicks tell, 3 %, over 36,000 clicks."""
    off = Market(1).run(1_200, 600)
    assert np.abs(off[300:] - 1).max() < 0.08
    assert off[300:].std() < 0.03


def test_chance_in_which_displays_are_sampled_is_no_jump() -> None:
    """One display in forty is learned, forty times: twice in three the chance is that of the draw, not of clicks."""
    off = np.concatenate([Market(seed, exposure_rate=1 / 40).run(600, 600)[300:] for seed in range(10, 16)])
    assert np.abs(off - 1).max() < 0.12
    assert off.std() < 0.04


@pytest.mark.parametrize("bias", [math.log(2), -math.log(2)])
def test_a_base_of_another_rate_is_back_after_a_few_hundred_clicks(bias: float) -> None:
    """From twice and from half the rate, with no click under way at the start: within 10 % after 400 clicks."""
    off = Market(2, bias).run(400, 100)
    assert np.abs(off[100:] - 1).max() < 0.15
    assert abs(off[80:].mean() - 1) < 0.06


def test_a_doubled_rate_is_followed_within_a_minute() -> None:
    """Found as a jump, although the level had been known for thousands of clicks."""
    market = Market(3)
    market.run(300, 300)
    off = market.run(240, 300, ctr=2 * P)
    assert np.abs(off[60:] / 2 - 1).max() < 0.1


def test_traffic_moves_nothing() -> None:
    """Traffic times four, a stop, and four times again: displays whose clicks cannot have come yet are not missed."""
    market = Market(4)
    market.run(300, 200)
    off = np.concatenate([market.run(60, 800), market.run(60, 0), market.run(60, 800)])
    assert np.abs(off - 1).max() < 0.1


def test_late_clicks_count_once() -> None:
    """A fifth of the clicks comes after 15 minutes: too few until then, as nobody can know, and none twice after."""
    market = Market(5, late_share=0.2)
    market.run(2_400, 100)
    assert abs(market.run(900, 100).mean() - 1) < 0.05


def test_what_is_not_known_says_nothing() -> None:
    """Displays without a click before a silence ended do not lower the level."""
    market = Market(6)
    market.run(300, 200)
    before = market.off
    market.run(3, 2_000, clicks_come=False)
    market.level.know_since(START_MS + market.second * 1000)
    assert np.abs(market.run(60, 200) / before - 1).max() < 0.08


@pytest.mark.parametrize("bias", [-2_000.0, 2_000.0])
def test_a_model_that_says_nought_or_one_is_moved_by_numbers(bias: float) -> None:
    """Towards the clicks, by at most one in a second; nothing is divided by the information, of which there is none."""
    market = Market(8, bias)
    market.run(30, 300)
    moved = market.bias - bias
    assert math.isfinite(moved)
    assert moved * bias <= 0
    assert abs(moved) <= 30


def test_a_restart_goes_on_bit_for_bit() -> None:
    """Also between two filterings, with displays that are in no cohort yet."""
    one, other = Market(7), Market(7)
    one.run(50, 130)
    other.run(50, 130)
    rows = example_rows(20, seed=1, kind=np.full(20, EXPOSURE, np.uint8))
    rows.ts_ms[...] = START_MS + 50_000
    for market in (one, other):
        terms = Terms.of_kinds(rows.kind, ("click",))
        assert market.level.step(rows, np.zeros(20, np.float32), terms, market.law, START_MS + 50_000) == 0.0
    other.level = ClickLevel(other.level.state())
    np.testing.assert_array_equal(one.run(50, 130), other.run(50, 130))


def test_a_state_of_before_sampling_counted_goes_on() -> None:
    """It lacks the variance that sampling adds, which is nought where every display is learned."""
    one, other = Market(9), Market(9)
    one.run(50, 130)
    other.run(50, 130)
    state = dict(other.level.state())
    state["cohorts"], state["fresh"] = state["cohorts"][:, :5], state["fresh"][:3]
    other.level = ClickLevel(state)
    np.testing.assert_array_equal(one.run(50, 130), other.run(50, 130))
