"""The temporal split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.examples import Examples
from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.rows import Rows
from learners.split import arrived, day_span_ms, split_by_time


def examples(known_ms: list[int], kind: list[int] | None = None) -> Examples:
    """Examples of which only times and kinds matter."""
    count = len(known_ms)
    columns: dict[str, NDArray[Any]] = {
        "known_ms": np.array(known_ms, np.int64),
        "kind": np.array(kind or [SETTLED] * count, np.uint8),
    }
    return Examples(
        spec_name="toy",
        spec_hash="0",
        rows=Rows(np.ones((count, 1), np.uint64), np.zeros((count, 0), np.float32)),
        columns=columns,
    )


@given(known_ms=st.lists(st.integers(0, 60), min_size=30, max_size=200))
def test_every_part_lies_before_the_next(known_ms: list[int]) -> None:
    """No row is lost, none is known at the time of an earlier part, order is that of known_ms."""
    given_examples = examples(known_ms)
    try:
        split = split_by_time(given_examples, validation_share=0.2, holdout_share=0.3)
    except ValueError:
        assert len(set(known_ms)) < len(known_ms)  # only many rows of one time leave a part without rows
        return
    times = given_examples.columns["known_ms"]
    parts = [times[part] for part in (split.train, split.validation, split.holdout)]
    assert np.array_equal(np.concatenate(parts), np.sort(times))
    assert all(len(part) for part in parts)
    assert parts[0][-1] < split.validation_from_ms == parts[1][0]
    assert parts[1][-1] < split.holdout_from_ms == parts[2][0]
    assert len(parts[2]) >= int(0.3 * len(known_ms))


def test_only_settled_rows_are_split_and_what_arrived_includes_the_later_kinds() -> None:
    """A replay takes corrections, and conversions when asked, in the order of their times."""
    kind = [CORRECTION, SETTLED, CONVERSION, SETTLED, SETTLED, SETTLED]
    given_examples = examples([25, 10, 30, 20, 40, 50], kind)
    split = split_by_time(given_examples, validation_share=0.25, holdout_share=0.25)
    assert [part.tolist() for part in (split.train, split.validation, split.holdout)] == [[1, 3], [4], [5]]
    assert arrived(given_examples, (20, 50), conversions=True).tolist() == [3, 0, 2, 4]
    assert arrived(given_examples, (20, 50), conversions=False).tolist() == [3, 0, 4]


def test_too_few_rows_are_refused_with_their_number() -> None:
    """Each part needs rows."""
    with pytest.raises(ValueError, match="5 settled examples leave 0 to validate and 0 to hold out"):
        split_by_time(examples([1, 2, 3, 4, 5]), validation_share=0.1, holdout_share=0.1)
    with pytest.raises(ValueError, match="20 settled examples leave 2 to validate"):
        split_by_time(examples([7] * 20), validation_share=0.1, holdout_share=0.1)


def test_days_are_local_and_both_included() -> None:
    """A day of UTC+8 begins eight hours before that of UTC; a missing bound is none."""
    midnight = 1_650_844_800_000  # 2022-04-25 UTC
    day, offset = 86_400_000, 8 * 3_600_000
    assert day_span_ms("2022-04-25", "2022-04-26", 8 * 3600) == (midnight - offset, midnight - offset + 2 * day)
    start, stop = day_span_ms("2022-04-25", "", 0) or (0, 0)
    assert start == midnight
    assert stop > 10**17
    assert day_span_ms("", "", 0) is None


@pytest.mark.parametrize(("since", "until", "message"), [("2022-04-26", "2022-04-25", "must not come"), ("x", "", "x")])
def test_days_that_mean_nothing_are_refused(since: str, until: str, message: str) -> None:
    """ValueError with the day."""
    with pytest.raises(ValueError, match=message):
        day_span_ms(since, until, 0)
