"""How what became known in a step is put into examples records: none larger than its topic takes."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from stream.records.examples import ExampleRows
from stream.records.limits import MOST_RECORD_BYTES

MOST_ROWS = 8_192  # of a record: what one call of the session store should fold
_MOST_BYTES = MOST_RECORD_BYTES // 2  # of its rows


class Part(NamedTuple):
    """What goes into one record, and the first of all rows that does."""

    rows: ExampleRows
    first_row: int


def parts(rows: ExampleRows) -> Iterator[Part]:
    """Split a step's rows, in their order; at least one part."""
    most = max(1, min(MOST_ROWS, _MOST_BYTES // _row_bytes(rows)))
    for first in range(0, max(len(rows), 1), most):
        yield Part(rows.take(slice(first, first + most)), first)


def _row_bytes(rows: ExampleRows) -> int:
    return sum(column.dtype.itemsize * prod(column.shape[1:]) for column in rows.columns().values())
