"""Packed states and how time works on them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learners.features.session_state import COUNTER, USER, decay, merged, sums_of
from tests.learners.states import counters_of


def test_states_are_packed_without_gaps() -> None:
    """What lies in Redis is the sum of its fields and nothing else."""
    assert (COUNTER.itemsize, USER.itemsize) == (56, 138)


def test_the_sums_are_a_view() -> None:
    """Writing to the sums writes to the counters."""
    counters = np.zeros((2, 3), COUNTER)
    sums_of(counters)[1, 2] = np.arange(1, 7)
    assert counters[1, 2].tolist() == (1, 2, 3, 4, 5, 6, 0)


def test_a_half_life_halves() -> None:
    """After one, two and no half lives; a clock that runs backwards takes nothing away."""
    assert decay(np.array([1000, 2000, 0, -5000]), 1000.0).tolist() == [0.5, 0.25, 1.0, 1.0]


@given(st.lists(st.lists(counters_of(), min_size=2, max_size=2), min_size=1, max_size=4))
def test_merged_adds_each_state_at_the_newest_time(parts: list[list[tuple[float, ...]]]) -> None:
    """Total sums add; decayed sums add as they are worth at the newest time of all parts."""
    states = np.array([[tuple(state) for state in part] for part in parts], COUNTER)
    found = merged(states, 60_000.0)
    for k in range(2):
        newest = max(part[k][6] for part in parts)
        assert found["ts_ms"][k] == newest
        for field in range(6):
            weights = [0.5 ** ((newest - part[k][6]) / 60_000.0) if field >= 3 else 1.0 for part in parts]
            expected = sum(part[k][field] * weight for part, weight in zip(parts, weights, strict=True))
            assert np.isclose(found[k].tolist()[field], expected)
