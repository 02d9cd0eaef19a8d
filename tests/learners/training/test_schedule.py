"""The learning rates of base training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.training.schedule import RateSchedule


def test_by_default_rates_stay_as_they_are() -> None:
    """A base then learns as the stream does."""
    assert [RateSchedule().factor(step) for step in (0, 1, 10**9)] == [1, 1, 1]


@given(warmup=st.integers(0, 50), plateau=st.integers(0, 50), half_life=st.floats(0.5, 100), floor=st.floats(0, 1))
def test_it_climbs_stays_and_halves(warmup: int, plateau: int, half_life: float, floor: float) -> None:
    """Linear to 1 over the warm-up, 1 over the plateau, then half of it every half-life, never below the floor."""
    schedule = RateSchedule(warmup_steps=warmup, plateau_steps=plateau, half_life_steps=half_life, floor=floor)
    factors = [schedule.factor(step) for step in range(warmup + plateau + 300)]
    assert factors[:warmup] == [pytest.approx((step + 1) / warmup) for step in range(warmup)]
    assert factors[warmup : warmup + plateau] == [1] * plateau
    decay = factors[warmup + plateau :]
    assert decay == [pytest.approx(max(floor, 2 ** (-step / half_life))) for step in range(300)]


def test_a_very_late_step_stands_on_the_floor() -> None:
    """No underflow however long a training lasts."""
    assert RateSchedule(plateau_steps=0, half_life_steps=1, floor=0.125).factor(10**12) == 0.125


@pytest.mark.parametrize(
    "wrong", [{"warmup_steps": -1}, {"plateau_steps": -1}, {"half_life_steps": 0.0}, {"floor": 1.5}]
)
def test_a_schedule_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    """The message names the field and the value."""
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        RateSchedule(**wrong)  # type: ignore[arg-type]
