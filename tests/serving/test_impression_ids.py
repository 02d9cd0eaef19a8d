"""Impression ids: unique, never 0, reproducible, and not to be guessed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.impression_ids import ImpressionIds, encipher, mix64, round_keys

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


def test_the_cipher_is_speck() -> None:
    """The designers' test vector of Speck64/128."""
    block = np.array([0x3B7265747475432D], np.uint64)
    encipher(block, round_keys(0x1B1A1918_13121110_0B0A0908_03020100))
    assert int(block[0]) == 0x8C6FA548454E028B


@given(U64, st.integers(0, 2**128 - 1))
def test_enciphered_ids_are_distinct_and_tell_nothing_of_the_next(salt: int, key: int) -> None:
    """About half of the bits differ from one id to the next; another key gives other ids."""
    ids = ImpressionIds(0, salt, key).take(1_000)
    assert len(np.unique(ids)) == 1_000
    flipped = np.bitwise_count(ids[1:] ^ ids[:-1])
    assert 30 < flipped.mean() < 34
    assert len(np.unique(flipped)) > 10
    assert not np.isin(ids, ImpressionIds(0, salt, key ^ 1).take(1_000)).any()


def test_the_number_that_is_enciphered_as_zero_is_left_out() -> None:
    """0 means missing on the wire."""
    key = 7
    x, y = 0, 0
    for one in round_keys(key).tolist()[::-1]:  # the rounds undone, the last one first
        y = _left(y ^ x, 29)
        x = _left((x ^ one) - y & 0xFFFFFFFF, 8)
    ids = ImpressionIds(0, mix64(0) ^ unmixed((x << 32 | y) - 2), key)
    taken = np.concatenate([ids.take(5), ids.take(5)])
    assert len(np.unique(taken)) == 10
    assert 0 not in taken


def _left(word: int, by: int) -> int:
    return (word << by | word >> 32 - by) & 0xFFFFFFFF
