"""The buffer of newest rows against a deque."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.models.row_buffer import Remembered, RowBuffer, codes_of


def rows_of(first: int, count: int) -> Remembered:
    """Rows with ascending numbers."""
    numbers = np.arange(first, first + count)
    return Remembered(
        np.stack((numbers, numbers + 1), axis=1).astype(np.uint32),
        numbers[:, None].astype(np.float32),
        (numbers % 2).astype(np.float32),
        numbers.astype(np.float32),
    )


@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=8))
def test_it_holds_the_newest_rows_oldest_first(size: int, counts: list[int]) -> None:
    """As a deque of bounded length does, through a state and back as well."""
    buffer, reference, added = RowBuffer(size, 2, 1), deque[int](maxlen=size), 0
    for count in counts:
        buffer.add(rows_of(added, count))
        reference.extend(range(added, added + count))
        added += count
        restored = RowBuffer(size, 2, 1)
        restored.restore(buffer.state())
        for each in (buffer, restored):
            assert len(each) == len(reference)
            assert each.rows().weight.tolist() == list(reference)
            assert each.rows().codes[:, 1].tolist() == [number + 1 for number in reference]
        buffer = restored


def test_a_state_of_other_widths_or_more_rows_is_refused() -> None:
    """The message names both."""
    buffer = RowBuffer(10, 2, 1)
    buffer.add(rows_of(0, 6))
    for other in (RowBuffer(5, 2, 1), RowBuffer(10, 3, 1), RowBuffer(10, 2, 2)):
        with pytest.raises(ValueError, match="6 rows"):
            other.restore(buffer.state())


def test_codes_tell_ids_apart_and_keep_missing() -> None:
    """The high halves; 0 stays 0."""
    assert codes_of(np.array([[0, 5 << 32, (6 << 32) + 9]], np.uint64)).tolist() == [[0, 5, 6]]
