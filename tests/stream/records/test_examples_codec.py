"""Records of examples: nothing is lost between them, and none is larger than its topic takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.records.examples import ExampleRows, concat
from stream.records.examples_codec import SPLIT_ROWS, ExamplesPart, split_rows
from stream.records.limits import MAX_RECORD_BYTES


def some_rows(count: int, fields: int, dense_inputs: int) -> ExampleRows:
    """Rows that differ by their impression."""
    empty = ExampleRows.empty(fields, dense_inputs).columns()
    columns: dict[str, Any] = {name: np.ones((count, *one.shape[1:]), one.dtype) for name, one in empty.items()}
    return ExampleRows(**columns | {"impression_id": np.arange(1, count + 1, dtype=np.uint64)})


@given(rows=st.integers(0, 3 * SPLIT_ROWS))
def test_put_together_again_they_are_what_was_split(rows: int) -> None:
    """In its order, and with the right first rows; nothing makes one empty record, for its watermark."""
    found = [*split_rows(some_rows(rows, 2, 1))]
    assert np.array_equal(concat([part.rows for part in found]).impression_id, np.arange(1, rows + 1))
    assert [part.first_row for part in found] == [sum(len(one.rows) for one in found[:at]) for at in range(len(found))]
    assert all(len(part.rows) <= SPLIT_ROWS for part in found)
    assert len(found) == max(1, -(-rows // SPLIT_ROWS))


@pytest.mark.parametrize(("fields", "dense_inputs"), [(1, 0), (39, 13), (1_000, 1_000)])
def test_no_record_is_too_large(fields: int, dense_inputs: int) -> None:
    """However wide the rows, and however many became known at once."""
    wide = some_rows(20_000 if fields < 1_000 else 2_000, fields, dense_inputs)
    found = [*split_rows(wide)]
    assert max(len(_encoded(part)) for part in found) < MAX_RECORD_BYTES - (64 << 10)


def _encoded(part: ExamplesPart) -> bytes:
    return part.rows.to_record("0123456789abcdef", 1).encode()
