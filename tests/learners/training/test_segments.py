"""Segments of rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from learners.features.encode import Encoder, Request
from learners.features.spec_parts import SpecError
from learners.training.segments import MOST_VALUES, Segment, SegmentRows, segments
from tests.learners.small_spec import SMALL

NO_USERS = np.empty(0, np.uint64)


def rows(tabs: list[object], durations: list[object] | None = None, ts_ms: int = 0) -> SegmentRows:
    """One request each, all of the first user, encoded with a real spec."""
    requests = [
        Request(at, ts_ms, {"user_id": 1}, {"tab": tab}, [{"ad_id": at, "author_id": "a", "duration_ms": duration}])
        for at, (tab, duration) in enumerate(zip(tabs, durations or [0] * len(tabs), strict=True))
    ]
    ids = Encoder(SMALL).ids(requests)
    columns = np.concatenate((ids.request_ids, ids.ad_ids), axis=1)
    return SegmentRows(columns, ids.ts_ms, ids.user_key)


def named(segment: Segment) -> list[str]:
    """The value of each row."""
    return [segment.values[code] for code in segment.codes]


def by_name(found: list[Segment]) -> dict[str, Segment]:
    """Segments by their name."""
    return {segment.name: segment for segment in found}


def test_by_default_user_hour_and_what_says_where_and_what_kind_of_ad() -> None:
    """No user attributes, no crosses, no ad ids."""
    assert [segment.name for segment in segments(SMALL, rows([1, 2]), NO_USERS)] == [
        "user",
        "hour",
        "tab",
        "author",
        "duration",
    ]


def test_whole_numbers_and_buckets_have_their_names_and_other_values_their_hash() -> None:
    """Texts get theirs when the caller knows them."""
    given = rows([3, "12", "feed", None, True], [-7, -5, 3, 10, None])
    found = by_name(segments(SMALL, given, NO_USERS))
    assert named(found["duration"]) == ["< -5", "-5..0", "0..10", ">= 10", "missing"]
    tabs = named(found["tab"])
    feed = int(given.ids[2, SMALL.field_index("tab")])
    assert tabs == ["3", "12", f"{feed:016x}", "missing", "1"]
    known = by_name(segments(SMALL, given, NO_USERS, values={"tab": ["feed"]}))
    assert named(known["tab"])[2] == "feed"
    assert known["tab"].values == ["missing", "feed", "1", "3", "12", "others"]


def test_users_are_known_when_seen_before_the_rows() -> None:
    """A row without a user is neither known nor new."""
    given = rows([1, 2, 3])
    user_key = np.array([given.user_key[0], 77, 0], np.uint64)
    known: NDArray[np.uint64] = np.sort(np.array([given.user_key[0], 5], np.uint64))
    found = by_name(segments(SMALL, given._replace(user_key=user_key), known))
    assert named(found["user"]) == ["known", "new", "not named"]


def test_the_hour_is_that_of_the_local_display() -> None:
    """The small spec lies at UTC+1."""
    found = by_name(segments(SMALL, rows([1], ts_ms=23 * 3_600_000 + 1), NO_USERS))
    assert named(found["hour"]) == ["00"]


def test_a_field_of_many_values_is_cut_only_when_asked_for() -> None:
    """Then its rare values are pooled."""
    tabs: list[object] = [*range(MOST_VALUES + 5), 3, 4]
    assert "tab" not in by_name(segments(SMALL, rows(tabs), NO_USERS))
    (found,) = segments(SMALL, rows(tabs), NO_USERS, wanted=["tab"])
    assert len(found.values) == MOST_VALUES + 1
    assert named(found).count("others") == 5
    assert named(found).count("3") == 2


def test_an_unknown_segment_is_refused() -> None:
    """With what there is."""
    with pytest.raises(SpecError, match="segment 'colour' must be user, hour or a column"):
        segments(SMALL, rows([1]), NO_USERS, wanted=["colour"])
