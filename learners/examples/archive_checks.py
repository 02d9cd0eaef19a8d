"""What the columns of an archive may hold: type, nulls and bounds, checked before anything is learned of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learners.examples.archive_parts import ArchiveError
from learners.examples.examples import MATRICES, SCALARS
from learners.examples.kinds import CONVERSION

_NO_POSITION = "a position in the topic, −1 for none"


class _Bounds(NamedTuple):
    low: float
    high: float
    meaning: str
    nan: bool = False  # whether NaN says that there is none


_BOUNDS: Mapping[str, _Bounds] = {
    "label": _Bounds(0, 1, "0 for no click, 1 for a click"),
    "kind": _Bounds(0, CONVERSION, "0 for a display, 1 for a click, 2 for a conversion"),
    "ts_ms": _Bounds(0, inf, "a time in ms since 1970"),
    "known_ms": _Bounds(0, inf, "a time in ms since 1970"),
    "p": _Bounds(0, 1, "a probability"),
    "conversion_p": _Bounds(0, 1, "a probability, NaN for none", nan=True),
    "propensity": _Bounds(0, 1, "a probability"),
    "model_version": _Bounds(0, inf, "a version, 0 for no model"),
    "partition": _Bounds(-1, inf, _NO_POSITION),
    "offset": _Bounds(-1, inf, _NO_POSITION),
    "ordinal": _Bounds(-1, inf, _NO_POSITION),
}
"""Weights and dense inputs have bounds where they are learned (`learners.protocol.batch`)."""


def check_types(path: str, schema: pa.Schema) -> None:
    """Raises ArchiveError for a column whose values are of another type than its dtype's."""
    for name in schema.names:
        found, wanted = schema.field(name).type, ""
        if name in MATRICES:
            of = found.value_type if pa.types.is_fixed_size_list(found) else None
            whole = MATRICES[name].startswith("u")
            if of is None or not (pa.types.is_integer(of) if whole else pa.types.is_floating(of)):
                wanted = f"lists of one length of {'whole numbers' if whole else 'floats'}"
        elif name in SCALARS:
            whole = not SCALARS[name][0].startswith("f")
            if not (
                pa.types.is_integer(found) or (pa.types.is_boolean(found) if whole else pa.types.is_floating(found))
            ):
                # pandas makes floats of whole numbers as soon as one is missing
                wanted = "whole numbers without a gap" if whole else "numbers"
        if wanted:
            raise ArchiveError(
                f"{path} holds {name} as {found}, which must be {wanted}: its values would be learned as others. "
                "Write the column with that type, and leave rows without a value out."
            )


def check_values(path: str, table: pa.Table, whole_column: Callable[[str], pa.ChunkedArray[Any]]) -> None:
    """Raises ArchiveError for a null, or a value out of bounds; it names the first row of them.

    whole_column : reads a column of the file again with the rows that ``table`` leaves out, to count rows by.
    """
    known_ms = whole_column("known_ms")
    if known_ms.null_count:  # a row without a time is in no span: it would be left out in silence
        _refuse(path, "known_ms", known_ms, np.asarray(known_ms.is_null()), "a time in ms since 1970")
    for name in table.column_names:
        if name in MATRICES or name in SCALARS:
            if table[name].null_count:
                _refuse(path, name, whole_column(name), np.asarray(whole_column(name).is_null()), "a value")
            if name in _BOUNDS and _wrong(table[name].to_numpy(), _BOUNDS[name]).any():
                low, high, meaning, _ = _BOUNDS[name]
                column = whole_column(name)
                bound = f"{low:g} or more" if high == inf else f"{low:g} to {high:g}"
                wrong = _wrong(column.to_numpy(), _BOUNDS[name])
                _refuse(path, name, column, wrong, f"{bound} ({meaning})")


def _wrong(values: NDArray[Any], bounds: _Bounds) -> NDArray[np.bool_]:
    inside = (values >= bounds.low) & (values <= bounds.high)  # false for NaN
    if bounds.nan:
        inside |= np.isnan(values)
    return np.asarray(~inside)


def _refuse(path: str, name: str, column: pa.ChunkedArray[Any], wrong: NDArray[np.bool_], bound: str) -> None:
    row = int(np.argmax(wrong))
    value = column[row].as_py()
    more = f" and in {count - 1} more" if (count := int(wrong.sum())) > 1 else ""
    raise ArchiveError(
        f"{path} holds {name} {'null' if value is None else value} in row {row + 1}{more}: it must be {bound}, and "
        "would be learned as that. Correct such rows, or leave them out."
    )
