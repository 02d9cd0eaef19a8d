"""Rows by what they are: known and new users, the hour, and every field of the request or the ad with few values.

Archived rows hold hashes of values, not the values. Bucketed numbers and whole numbers get their names back by hashing
the candidates again; any other value is shown as its hash, unless the caller knows the field's values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.features.hashing import FieldHasher, bucket_ids
from learners.features.spec import FeatureSpec
from learners.features.spec_parts import Field, SpecError

MOST_VALUES = 24
"""A field with more is no segment by itself; asked for, it is shown by its most frequent values and ``others``."""

USER, HOUR, OTHERS = "user", "hour", "others"

_GUESSED_NUMBERS = 1000  # 0..999: a segment is shown by the number whose hash it is
_HOUR_MS = 3_600_000


class Segment(NamedTuple):
    """One way to cut N rows.

    values : the segment's values in the order in which they are shown. · codes : (N,) the value of each row.
    """

    name: str
    values: list[str]
    codes: NDArray[np.intp]


class SegmentRows(NamedTuple):
    """What must be known of N rows to cut them."""

    ids: NDArray[np.uint64]  # (N, F)
    ts_ms: NDArray[np.int64]  # (N,)
    user_key: NDArray[np.uint64]  # (N,) 0: no user named


def segments(
    spec: FeatureSpec,
    rows: SegmentRows,
    known_users: NDArray[np.uint64],
    *,
    wanted: Sequence[str] = (),
    values: Mapping[str, Sequence[Any]] | None = None,
) -> list[Segment]:
    """Cut rows by ``wanted``, or by default by user, hour, and each plain context or ad field of few values.

    Parameters
    ----------
    known_users
        Ascending keys of the users that were seen before these rows.
    wanted
        Names of id columns of the spec, ``user`` (known or new) and ``hour`` (local, of the display).
    values
        Field → its raw values, as a request holds them, to be shown in place of their hashes.

    Raises
    ------
    SpecError
        A wanted name that is none of these.
    """
    found = []
    for name in wanted or (USER, HOUR, *_plain(spec)):
        if name == USER:
            found.append(_by_user(rows, known_users))
        elif name == HOUR:
            found.append(_by_hour(rows, spec.utc_offset_s))
        else:
            ids = rows.ids[:, _column(spec, name)]
            if wanted or len(np.unique(ids)) <= MOST_VALUES:
                found.append(_by_field(name, ids, _names(spec, name, (values or {}).get(name, ()))))
    return found


def check_wanted(spec: FeatureSpec, wanted: Sequence[str]) -> None:
    """Raise SpecError for a name that is no segment of this spec."""
    for name in wanted:
        if name not in (USER, HOUR):
            _column(spec, name)


def _plain(spec: FeatureSpec) -> list[str]:
    """The fields that say where an ad is shown and what kind of ad it is."""
    groups = ("context.", "ad.")
    return [field.name for field in spec.fields if field.source.startswith(groups) and field.name != spec.ad]


def _column(spec: FeatureSpec, name: str) -> int:
    try:
        return spec.field_index(name)
    except SpecError as error:
        raise SpecError(f"segment {name!r} must be {USER}, {HOUR} or a column: {error}") from None


def _by_user(rows: SegmentRows, known_users: NDArray[np.uint64]) -> Segment:
    codes = np.where(np.isin(rows.user_key, known_users), 0, 1)
    return Segment(USER, ["known", "new", "not named"], np.where(rows.user_key == 0, 2, codes))


def _by_hour(rows: SegmentRows, utc_offset_s: int) -> Segment:
    hours = (rows.ts_ms + utc_offset_s * 1000) // _HOUR_MS % 24
    return Segment(HOUR, [f"{hour:02d}" for hour in range(24)], hours.astype(np.intp))


def _by_field(name: str, ids: NDArray[np.uint64], names: Mapping[int, str]) -> Segment:
    """Named values in the order of their names, then hashes by frequency; the rarest beyond the bound are others."""
    unique, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    frequent = np.lexsort((unique, -counts))[:MOST_VALUES]
    rank = {id_: at for at, id_ in enumerate(names)}
    shown = sorted(frequent.tolist(), key=lambda at: (rank.get(int(unique[at]), len(rank)), -counts[at], unique[at]))
    code = np.full(len(unique), len(shown), np.intp)
    code[shown] = np.arange(len(shown))
    texts = [names.get(int(unique[at]), f"{int(unique[at]):016x}") for at in shown]
    return Segment(name, [*texts, OTHERS], code[inverse.reshape(-1)])


def _names(spec: FeatureSpec, name: str, values: Sequence[Any]) -> dict[int, str]:
    """Id → name, in the order of the names."""
    names = {0: "missing"}
    field = spec.by_name.get(name)
    if field is None or field.cross:
        return names
    if field.edges:
        ids = bucket_ids(name, len(field.edges) + 1).tolist()
        return names | dict(zip(ids, _bucket_names(field), strict=True))
    hasher = FieldHasher(name, field.source)
    candidates: list[Any] = [*values, *range(_GUESSED_NUMBERS)]
    return names | {hasher.id(value): str(value) for value in candidates}


def _bucket_names(field: Field) -> list[str]:
    edges = [f"{edge:g}" for edge in field.edges]
    between = [f"{low}..{high}" for low, high in pairwise(edges)]
    return [f"< {edges[0]}", *between, f">= {edges[-1]}"]
