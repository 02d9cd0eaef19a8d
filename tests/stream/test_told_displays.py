"""Displays told before: compared with a dictionary that forgets them one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.examples import Displays
from stream.told_displays import ToldDisplays


def displays(keys: list[int]) -> Displays:
    """Displays of these impressions."""
    ids = np.array(keys, np.uint64)
    return Displays(ids, ids, np.zeros(len(keys), np.int64))


@given(
    records=st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=8),
    settled=st.sets(st.integers(1, 60)),
    asked=st.lists(st.lists(st.integers(1, 60), max_size=8, unique=True), max_size=8),
)
def test_each_is_taken_once_by_the_record_that_told_it(
    records: list[list[int]], settled: set[int], asked: list[list[int]]
) -> None:
    """What was settled is not there, and holds no record back."""
    seen: set[int] = set()
    told = ToldDisplays(lambda keys: np.isin(keys, np.array([*settled], np.uint64)))
    left: dict[int, int] = {}
    for offset, keys in enumerate(records, start=100):
        fresh = [key for key in dict.fromkeys(keys) if key not in seen]
        seen.update(fresh)
        told.add(displays(fresh), offset)
        left |= {key: offset for key in fresh if key not in settled}
    assert told.first_offset(999) == min(left.values(), default=999)
    for keys in asked:
        where, offsets = told.take(np.array(keys, np.uint64))
        found = [(at, left.pop(key)) for at, key in enumerate(keys) if key in left]
        assert [*zip(where.tolist(), offsets.tolist(), strict=True)] == found
        assert len(told) == len(left)
        assert told.first_offset(999) == min(left.values(), default=999)


def test_many_are_sifted_while_they_come() -> None:
    """The settled ones of a long log do not pile up."""
    sifted: list[int] = []

    def all_settled(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        sifted.append(len(keys))
        return np.ones(len(keys), np.bool_)

    told = ToldDisplays(all_settled)
    for offset in range(100):
        told.add(displays([*range(offset * 8_000, (offset + 1) * 8_000)]), offset)
    assert max(sifted) < 100_000
    assert told.first_offset(100) == 100
    assert len(told) == 0
