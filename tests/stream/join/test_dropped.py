"""Which rows were dropped not long ago."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.join.state.dropped import DroppedRows


def keys(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Impression ids."""
    return np.array(numbers, np.uint64)


@given(st.lists(st.lists(st.integers(0, 50), max_size=40), max_size=8), st.integers(0, 3))
def test_it_knows_what_a_set_knows(parts: list[list[int]], look_every: int) -> None:
    """Whatever came between the looks."""
    dropped, known = DroppedRows(100), set[int]()
    everything = np.arange(51, dtype=np.uint64)
    for at, part in enumerate(parts):
        dropped.add(keys(*part), at)
        known |= set(part)
        if look_every and at % look_every == 0:
            assert set(everything[dropped.known(everything)].tolist()) == known
    assert set(everything[dropped.known(everything)].tolist()) == known


def test_it_forgets_what_was_dropped_too_long_ago() -> None:
    """By parts, and gives their memory back."""
    dropped = DroppedRows(kept_ms=100)
    dropped.add(np.arange(20_000, dtype=np.uint64), 1_000)
    dropped.add(keys(30_000), 1_050)
    dropped.expire(1_100)
    assert dropped.known(keys(5, 30_000, 40_000)).tolist() == [True, True, False]
    dropped.expire(1_101)
    assert dropped.known(keys(5, 30_000)).tolist() == [False, True]
    dropped.expire(1_151)
    assert (dropped.known(keys(30_000)).tolist(), dropped.bytes) == ([False], 0)
