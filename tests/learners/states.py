"""Hypothesis strategies for packed states, sane and damaged."""

from __future__ import annotations

import math

from hypothesis import strategies as st

NOW_MS = 1_700_000_000_000
_times = st.one_of(
    st.just(0),
    st.integers(NOW_MS - 4 * 3_600_000, NOW_MS + 60_000),
    st.integers(NOW_MS - 7_200_001, NOW_MS - 3_599_999),
)
_counts = st.one_of(st.integers(0, 40).map(float), st.floats(0, 1000))
_damaged = st.sampled_from([math.nan, math.inf, -math.inf, -3.0, 1e300])


def counters_of(*, damaged: bool = False) -> st.SearchStrategy[tuple[float, ...]]:
    """One COUNTER as a tuple; ``damaged``: with sums that no fold can make."""
    sums = st.one_of(_counts, _damaged) if damaged else _counts
    return st.tuples(*[sums] * 6, _times)


def users_of() -> st.SearchStrategy[tuple[object, ...]]:
    """One USER as a tuple."""
    small, ads = st.integers(0, 600), st.tuples(*[st.integers(0, 5)] * 8)
    outcomes = st.integers(0, 255), st.integers(0, 8)
    return st.tuples(_times, _times, _times, _times, small, small, ads, ads, *outcomes)
