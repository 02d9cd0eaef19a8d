"""Impression ids: unique, never 0, reproducible."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.impression_ids import ImpressionIds, mix64

U64 = st.integers(0, 2**64 - 1)


@given(U64, U64, st.lists(st.integers(0, 50), max_size=20))
def test_ids_of_one_life_are_distinct_not_zero_and_reproducible(start: int, salt: int, counts: list[int]) -> None:
    """The same start and salt give the same ids."""
    ids, again = ImpressionIds(start, salt), ImpressionIds(start, salt)
    taken = np.concatenate([ids.take(n) for n in counts] or [np.zeros(0, np.uint64)])
    assert len(set(taken.tolist())) == len(taken) == sum(counts)
    assert 0 not in taken
    assert np.array_equal(again.take(len(taken)), taken) or not len(taken)


def test_lives_that_differ_in_salt_or_start_begin_far_apart() -> None:
    """A thousand lives of neighbouring starts and salts leave room for billions of ids each."""
    starts = sorted(int(ImpressionIds(ms, salt).take(1)[0]) for ms in range(40) for salt in range(25))
    assert min(b - a for a, b in pairwise(starts)) > 10**9


def unmixed(x: int) -> int:
    """The number that ``mix64`` makes ``x`` of: its steps undone, the last one first."""
    x ^= (x >> 31) ^ (x >> 62)
    x = x * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    x ^= (x >> 27) ^ (x >> 54)
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    x ^= (x >> 30) ^ (x >> 60)
    return (x - 0x9E3779B97F4A7C15) % 2**64


def test_the_run_jumps_over_zero() -> None:
    """At the end of the numbers the run goes on from 1."""
    ids = ImpressionIds(0, mix64(0) ^ unmixed(2**64 - 3))
    assert ids.take(1).tolist() == [2**64 - 3]
    assert ids.take(5).tolist() == [1, 2, 3, 4, 5]


@given(U64, U64)
def test_mixing_loses_nothing(a: int, b: int) -> None:
    """Different numbers mix to different numbers."""
    assert (mix64(a) == mix64(b)) == (a == b)
