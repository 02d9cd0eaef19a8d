"""Freshness and the quantiles it is told in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.freshness import Freshness
from serving.quantiles import NewestValues


def test_a_click_is_observed_once_at_the_first_prediction_after_its_swap() -> None:
    """Clicks of several versions wait together; unknown times (0) are left out."""
    freshness = Freshness()
    freshness.swapped(np.array([1_000, 0, 2_000]))
    freshness.swapped(np.array([2_500]))
    assert freshness.waiting == 3
    assert freshness.predicted(3_000).tolist() == [2.0, 1.0, 0.5]
    assert freshness.predicted(9_000).tolist() == []
    assert freshness.seconds.quantiles([0.5, 0.99]) == [1.0, 2.0]


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), max_size=30), max_size=12),
    st.integers(1, 40),
)
def test_quantiles_are_those_of_the_newest_values(batches: list[list[float]], capacity: int) -> None:
    """Against a plain list cut to its end."""
    newest, plain = NewestValues(capacity), [value for batch in batches for value in batch]
    for batch in batches:
        newest.observe(batch)
    assert newest.count == len(plain)
    kept = sorted(plain[-capacity:])
    assert sorted(newest.values().tolist()) == kept
    found = newest.quantiles([0.0, 0.5, 1.0])
    if not kept:
        assert found is None
    else:
        assert found == [kept[0], kept[(len(kept) + 1) // 2 - 1], kept[-1]]


def test_a_capacity_of_zero_is_refused() -> None:
    """The message names the value."""
    with pytest.raises(ValueError, match="capacity=0"):
        NewestValues(0)
