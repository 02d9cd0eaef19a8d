"""Raw feature values to 64-bit ids: xxh3-64, salted by field; 0 means missing.

A value is text, a number or a flag. Its id is the hash of its canonical text, so that ``5``, ``5.0`` and ``"5"``, which
different clients send for the same thing, are one id. Numbers of a field with bucket edges are bucketed first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from learners.features.shown import shown

MISSING = 0
_CACHED_VALUES_PER_FIELD = 1 << 16  # some 10 MB at the most; then the cache starts empty
_CACHED_LENGTH = 64  # longer texts are hashed each time
_FMIX64_FACTOR = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3
_SHIFT = np.uint64(32)
_LEAST_INTEGER, _GREATEST_INTEGER = -(1 << 63), (1 << 64) - 1


class FeatureError(ValueError):
    """A request holds a value that no feature can be made of; the message is for the sender."""


def salt_of(field: str) -> int:
    """The u64 that keeps equal values of different fields apart."""
    return xxhash.xxh3_64_intdigest(field.encode())


def hash_text(salt: int, text: str) -> int:
    """The id of a text in the field with this salt: never 0."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=salt) or 1


def bucket_ids(field: str, buckets: int) -> NDArray[np.uint64]:
    """The ids of buckets 0..buckets−1 of a field, (buckets,) u64."""
    salt = salt_of(field)
    return np.array([hash_text(salt, str(bucket)) for bucket in range(buckets)], dtype=np.uint64)


def cross_ids(
    salts: NDArray[np.uint64], parts: Sequence[tuple[NDArray[np.intp], NDArray[np.uint64]]]
) -> NDArray[np.uint64]:
    """The ids of X crosses, each a hash of the ids of its parts in their order; missing where any part is.

    Parameters
    ----------
    salts : (..., X) or (X,) u64, one a cross.
    parts : the first, second, ... part of each cross: which of the X crosses have such a part, (x,), and its id
        in every row, (..., x) u64. Every cross has a first part.

    Returns
    -------
    (..., X) u64
    """
    first = parts[0][1]
    mixed = _mixed(salts ^ first)
    present = first != 0
    for which, ids in parts[1:]:
        if len(which) == len(salts):
            mixed = _mixed(mixed ^ ids)
            present &= ids != 0
        else:
            mixed[..., which] = _mixed(mixed[..., which] ^ ids)
            present[..., which] &= ids != 0
    mixed |= mixed == 0
    mixed *= present
    return mixed


def _mixed(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    ids = ids * _FMIX64_FACTOR
    ids ^= ids >> _SHIFT
    ids *= _FMIX64_FACTOR
    ids ^= ids >> _SHIFT
    return ids


class FieldHasher:
    """The ids of one field's raw values, cached.

    Parameters
    ----------
    field : the field's name, its salt.
    source : where the value stands in a request, for error messages.
    edges : ascending bucket edges of a number; bucket k holds edges[k−1] <= value < edges[k]. Empty: the value itself.
    """

    def __init__(self, field: str, source: str, edges: Sequence[float] = ()) -> None:
        self.source = source
        self._salt = salt_of(field)
        self._edges = tuple(edges)
        self._buckets = bucket_ids(field, len(edges) + 1).tolist() if edges else []
        self._cache: dict[Any, int] = {None: MISSING}

    @property
    def cached_values(self) -> int:
        """Raw values whose ids are kept."""
        return len(self._cache)

    def ids(self, values: Sequence[Any]) -> list[int]:
        """The ids of raw values, one each. Raises FeatureError for a value of a wrong type."""
        try:
            return list(map(self._cache.__getitem__, values))
        except (KeyError, TypeError):  # unseen, or not hashable and so surely of a wrong type
            return [self.id(value) for value in values]

    def id(self, value: Any) -> int:
        """The id of one raw value; None, an empty text and NaN are missing.

        Raises FeatureError for a wrong type, and for an integer beyond 64 bits.
        """
        known = self._cache.get(value) if isinstance(value, (str, int, float)) or value is None else None
        if known is not None:
            return known
        if isinstance(value, int) and not _LEAST_INTEGER <= value <= _GREATEST_INTEGER:
            # Python hashes integers modulo 2**61 - 1: longer ones could be chosen to collide in the cache without end
            raise FeatureError(
                f"{self.source} = {shown(value)} does not fit in 64 bits: no id of an ad server is so long. Send an "
                "integer of 64 bits, or the digits as text."
            )
        made = self._bucket(value) if self._edges else self._hash(value)
        if value == value and not (isinstance(value, str) and len(value) > _CACHED_LENGTH):  # NaN never hits a cache
            if len(self._cache) >= _CACHED_VALUES_PER_FIELD:
                self._cache = {None: MISSING}
            self._cache[value] = made
        return made

    def _hash(self, value: Any) -> int:
        if isinstance(value, str):
            return hash_text(self._salt, value) if value else MISSING
        if isinstance(value, (int, float)):
            return MISSING if value != value else hash_text(self._salt, _number_text(value))  # NaN
        raise self._wrong(value, "text, a number, true, false or null")

    def _bucket(self, value: Any) -> int:
        if isinstance(value, str):
            if not value:
                return MISSING
            try:
                value = float(value)
            except ValueError:
                raise self._wrong(value, "a number or null") from None
        if not isinstance(value, (int, float)):
            raise self._wrong(value, "a number or null")
        return MISSING if value != value else self._buckets[bisect_right(self._edges, value)]

    def _wrong(self, value: Any, wanted: str) -> FeatureError:
        return FeatureError(
            f"{self.source} = {shown(value)} is a {type(value).__name__}, it must be {wanted}: no feature can be made "
            "of it. Send one such value, or leave the key out."
        )


def _number_text(value: float) -> str:
    """The one text of a number, whatever type a client gave it."""
    if isinstance(value, float) and not value.is_integer():  # infinities too
        return repr(value)
    return str(int(value))
