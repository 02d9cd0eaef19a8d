"""Displays that wait come out when time has come to them, against a plain list."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.join.state.displays import WaitingDisplays

TIMES = st.lists(st.lists(st.integers(0, 50), max_size=5), max_size=10)


@given(parts=TIMES, until_ms=st.lists(st.integers(0, 60), max_size=5))
def test_parts_come_out_that_begin_by_then(parts: list[list[int]], until_ms: list[int]) -> None:
    """None of what is due stays; what comes out with it and is later is added again."""
    waiting, left = WaitingDisplays(), set[int]()
    times: list[int] = []
    for part in parts:
        indices = np.arange(len(times), len(times) + len(part))
        waiting.add(indices, np.array(part, np.int64))
        times += part
        left |= set(indices.tolist())
    for until in sorted(until_ms):
        for found in list(waiting.take(until)):
            assert min(times[index] for index in found) <= until
            later = np.array([index for index in found.tolist() if times[index] > until], np.uint32)
            waiting.add(later, np.array([times[index] for index in later.tolist()], np.int64))
            left -= set(found.tolist()) - set(later.tolist())
        assert left == {index for index, at in enumerate(times) if at > until}
        assert len(waiting) == len(left)
