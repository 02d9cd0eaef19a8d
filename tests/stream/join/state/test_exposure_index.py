"""Which record holds which exposed row, against a list of all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.join.state.exposure_index import ExposureIndex


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=400),
    forget=st.floats(0, 1),
)
def test_every_row_is_found_in_its_record(rows: list[tuple[int, int]], forget: float) -> None:
    """Whatever the records hold (some hold none), whatever offsets lie between them, and after older ones are gone."""
    index, offset = ExposureIndex(), 0
    homes: list[tuple[int, int]] = []
    for count, step in rows:
        offset += step
        index.note(len(homes), offset)
        homes += [(offset, row) for row in range(count)]
        index.forget(int(forget * len(homes)))
    kept = np.arange(int(forget * len(homes)), len(homes))
    offsets, indices = index.find(kept)
    assert list(zip(offsets.tolist(), indices.tolist(), strict=True)) == homes[len(homes) - len(kept) :]


def test_what_is_forgotten_takes_no_memory() -> None:
    """A day of small records is long: it is as much as is kept, not as there ever was."""
    index = ExposureIndex()
    for number in range(100_000):
        index.note(number, number)
        index.forget(number - 50)
    assert index.bytes < 10_000
