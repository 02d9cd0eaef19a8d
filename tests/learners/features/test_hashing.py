"""Raw values to ids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from learners.features.hashing import FeatureError, FieldHasher, bucket_ids, cross_ids, hash_text, salt_of

U64 = st.integers(0, 2**64 - 1)
WHOLE = st.integers(-(2**63), 2**64 - 1)  # those that a request may hold


def mixed(value: int) -> int:
    """MurmurHash3's two multiply-and-shift rounds in plain integers."""
    for _ in range(2):
        value = value * 0xFF51AFD7ED558CCD % 2**64
        value ^= value >> 32
    return value


def test_an_id_is_the_salted_xxh3_of_the_text() -> None:
    """Any language with xxHash can compute the same ids."""
    salt = xxhash.xxh3_64_intdigest(b"tab")
    assert FieldHasher("tab", "context.tab").id("home") == xxhash.xxh3_64_intdigest(b"home", seed=salt)


def test_equal_values_of_different_fields_have_different_ids() -> None:
    """Fields are salted apart."""
    assert FieldHasher("a", "ad.a").id("7") != FieldHasher("b", "ad.b").id("7")


@given(st.integers(-(10**15), 10**15))
def test_a_number_is_one_id_however_a_client_sends_it(number: int) -> None:
    """Integers, whole floats and their text mean the same."""
    hasher = FieldHasher("x", "ad.x")
    assert hasher.id(number) == hasher.id(float(number)) == hasher.id(str(number)) != 0


@pytest.mark.parametrize("value", [None, "", math.nan, -math.nan])
def test_nothing_is_missing(value: object) -> None:
    """None, an empty text and NaN have the id 0, in plain and in bucketed fields."""
    assert FieldHasher("x", "ad.x").ids([value]) == [0]
    assert FieldHasher("x", "ad.x", (1.0,)).ids([value]) == [0]


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, (1,), b"x", object()])
def test_a_wrong_type_is_named_with_its_source_and_value(value: object) -> None:
    """The error says what came, where, and what to send."""
    with pytest.raises(FeatureError, match=r"^ad\.x = .* is a \w+, it must be text, a number.*Send one"):
        FieldHasher("x", "ad.x").ids(["fine", value])


def test_text_that_is_no_number_is_wrong_in_a_bucketed_field() -> None:
    """A bucketed field needs a number."""
    with pytest.raises(FeatureError, match=r"ad\.x = 'long' is a str, it must be a number"):
        FieldHasher("x", "ad.x", (1.0,)).id("long")


@given(st.lists(st.one_of(WHOLE, st.floats(), st.booleans()), max_size=20))
def test_a_number_falls_between_its_edges(values: list[float]) -> None:
    """Negative, huge and infinite numbers included; the cache changes nothing."""
    edges = (-5.0, 0.0, 10.0)
    hasher = FieldHasher("x", "ad.x", edges)
    table = bucket_ids("x", 4).tolist()
    expected = [0 if value != value else table[sum(edge <= value for edge in edges)] for value in values]
    assert [hasher.ids(values), hasher.ids(values)] == [expected, expected]


@given(st.lists(st.one_of(st.text(max_size=100), WHOLE, st.none(), st.booleans()), max_size=30))
def test_the_cache_changes_nothing(values: list[object]) -> None:
    """A hasher that has seen values answers as a fresh one."""
    hasher = FieldHasher("x", "ad.x")
    fresh = [FieldHasher("x", "ad.x").id(value) for value in values]
    assert hasher.ids(values) == hasher.ids(values) == fresh


@pytest.mark.parametrize("edges", [(), (1.0,)])
@pytest.mark.parametrize(
    "value",
    [2**64, -(2**63) - 1, 9 * (2**61 - 1) + 7, 10**400, 10**5000],
    ids=lambda one: f"{one.bit_length()} bits" if isinstance(one, int) else None,
)
def test_an_integer_beyond_64_bits_is_refused_and_not_remembered(value: int, edges: tuple[float, ...]) -> None:
    """All integers k (2**61 - 1) + 7 have one hash in Python: 2,000 of them a request would make every look-up slow."""
    hasher = FieldHasher("x", "ad.x", edges)
    with pytest.raises(FeatureError, match=r"ad\.x = .* does not fit in 64 bits"):
        hasher.ids([7, value])
    assert hasher.cached_values == 2


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of new values cannot fill the memory."""
    monkeypatch.setattr("learners.features.hashing._CACHED_VALUES_PER_FIELD", 10)
    hasher = FieldHasher("x", "ad.x")
    ids = [hasher.id(value) for value in range(100)]
    assert hasher.cached_values <= 10
    assert ids == [hash_text(salt_of("x"), str(value)) for value in range(100)]


@given(st.lists(st.tuples(U64, U64, U64), min_size=1, max_size=5), U64, U64)
def test_crosses_mix_their_parts_in_order(rows: list[tuple[int, int, int]], salt_a: int, salt_b: int) -> None:
    """Two crosses, of two and three parts, against plain integers; missing where a part is."""
    ids = np.array(rows, np.uint64)
    both = np.array([0, 1])
    parts = [(both, ids[:, [0, 1]]), (both, ids[:, [1, 0]]), (both[1:], ids[:, [2]])]
    found = cross_ids(np.array([salt_a, salt_b], np.uint64), parts).tolist()
    for (a, b, c), (two, three) in zip(rows, found, strict=True):
        assert two == (0 if 0 in (a, b) else mixed(mixed(salt_a ^ a) ^ b) or 1)
        assert three == (0 if 0 in (a, b, c) else mixed(mixed(mixed(salt_b ^ b) ^ a) ^ c) or 1)
