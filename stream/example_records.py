"""How what became known in a step is put into examples records: none larger than its topic takes."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from stream.examples import Displays, ExampleRows
from stream.input_limits import MOST_RECORD_BYTES

MOST_ROWS = 8_192  # of a record, and as many displays: what one call of the session store should fold
_MOST_BYTES = MOST_RECORD_BYTES // 2  # of its rows; a record's displays have 200 kB


class Part(NamedTuple):
    """What goes into one record, and the first of all rows that does."""

    rows: ExampleRows
    displays: Displays | None
    first_row: int


def parts(rows: ExampleRows, displays: Displays | None) -> Iterator[Part]:
    """Split a step's rows and displays, in their order; at least one part.

    All displays come before any row: a row may settle in the step in which it was displayed.
    """
    told = [] if displays is None else [*_split_displays(displays)]
    yield from (Part(rows.take(slice(0, 0)), part, 0) for part in told[:-1])
    most = max(1, min(MOST_ROWS, _MOST_BYTES // _row_bytes(rows)))
    for first in range(0, max(len(rows), 1), most):
        last_told = told[-1] if told and not first else None
        yield Part(rows.take(slice(first, first + most)), last_told, first)


def _split_displays(displays: Displays) -> Iterator[Displays]:
    for first in range(0, len(displays.ts_ms), MOST_ROWS):
        here = slice(first, first + MOST_ROWS)
        yield Displays(displays.impression_id[here], displays.user_key[here], displays.ts_ms[here])


def _row_bytes(rows: ExampleRows) -> int:
    return sum(column.dtype.itemsize * prod(column.shape[1:]) for column in rows.columns().values())
