"""What the columns of an archive may hold: type, nulls and bounds, checked before anything is learned of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from learners.examples.archive_parts import ArchiveError
from learners.examples.examples import MATRICES, MAX_WEIGHT, SCALARS
from learners.examples.kinds import CONVERSION

_NO_POSITION = "a position in the topic, −1 for none"
_TIME = "a time in ms since 1970, before 2106"
_PLURAL = {"ids": "ids", "dense": "dense inputs", "weight": "weights"}
_COUNTED = 1000  # bounds beyond it are said as such
_YEAR_2106_MS = (1 << 32) * 1000  # the table's last seen times end there


class _Bounds(NamedTuple):
    low: float
    high: float
    meaning: str
    nan: bool = False  # whether NaN says that there is none


_BOUNDS: Mapping[str, _Bounds] = {
    "label": _Bounds(0, 1, "0 for no click, 1 for a click"),
    "kind": _Bounds(0, CONVERSION, "0 for a display, 1 for a click, 2 for a conversion"),
    "ts_ms": _Bounds(0, _YEAR_2106_MS, _TIME),
    "known_ms": _Bounds(0, _YEAR_2106_MS, _TIME),
    "click_produced_ms": _Bounds(0, _YEAR_2106_MS, _TIME),
    "weight": _Bounds(0, MAX_WEIGHT, "a weight must not be negative, and must not exceed what one row can stand for"),
    "delay_ms": _Bounds(-1, inf, "ms from the display, −1 for none"),
    "p": _Bounds(0, 1, "a probability"),
    "conversion_p": _Bounds(0, 1, "a probability, NaN for none", nan=True),
    "conversion_logit": _Bounds(-inf, inf, "log-odds, NaN for none", nan=True),
    "propensity": _Bounds(0, 1, "a probability"),
    "model_version": _Bounds(0, inf, "a version, 0 for no model"),
    "partition": _Bounds(-1, inf, _NO_POSITION),
    "offset": _Bounds(-1, inf, _NO_POSITION),
    "ordinal": _Bounds(-1, inf, _NO_POSITION),
}
"""Beside what the dtype of each column can hold; of columns that are not named that alone, NaN not included."""


def _bounds_of(name: str) -> _Bounds:
    """What a value of a column may be so that it is itself in the column's dtype."""
    dtype = np.dtype(SCALARS[name][0] if name in SCALARS else MATRICES[name])
    low, high, meaning, nan = _BOUNDS.get(name, _Bounds(-inf, inf, "a number"))
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    number = float if dtype.kind == "f" else int
    return _Bounds(number(max(low, limits.min)), number(min(high, limits.max)), meaning, nan)


def check_types(path: str, schema: pa.Schema) -> None:
    """Raises ArchiveError for a column whose values are of another type than its dtype's."""
    for at, name in enumerate(schema.names):
        if schema.names.count(name) > 1 and (name in MATRICES or name in SCALARS):
            raise ArchiveError(
                f"{path} holds {name} {schema.names.count(name)} times: either could be meant. Write it with one."
            )
        found, wanted = schema.field(at).type, ""  # by its place: a name with a NUL in it is not found again
        if name in MATRICES:
            of = found.value_type if pa.types.is_fixed_size_list(found) else None
            whole = MATRICES[name].startswith("u")
            if of is None or not (pa.types.is_integer(of) if whole else pa.types.is_floating(of)):
                wanted = f"lists of one length of {'whole numbers' if whole else 'floats'}"
        elif name in SCALARS:
            whole = not SCALARS[name][0].startswith("f")
            boolean = name == "label" and pa.types.is_boolean(found)
            if not (pa.types.is_integer(found) or boolean or (not whole and pa.types.is_floating(found))):
                # pandas makes floats of whole numbers as soon as one is missing
                wanted = "whole numbers without a gap" if whole else "numbers"
        if wanted:
            raise ArchiveError(
                f"{path} holds {name} as {found}, which must be {wanted}: its values would be learned as others. "
                "Write the column with that type, and leave rows without a value out."
            )


class Whole(NamedTuple):
    """How a file tells more of itself: what ``table`` holds may be a part of its rows."""

    column: Callable[[str], pa.ChunkedArray[Any]]  # all values of a column
    group_rows: Callable[[], Sequence[int]]  # of each row group


def check_values(path: str, table: pa.Table, whole: Whole) -> None:
    """Raises ArchiveError for a null, or a value out of bounds; it names the first row of them."""
    if "known_ms" in table.column_names:
        known_ms = whole.column("known_ms")
        if known_ms.null_count:  # a row without a time is in no span: it would be left out in silence
            _refuse(path, "known_ms", np.asarray(known_ms.is_null()), whole, _TIME)
    for name in table.column_names:
        if name not in MATRICES and name not in SCALARS:
            continue
        if table[name].null_count:
            _refuse(path, name, np.asarray(whole.column(name).is_null()), whole, "a value")
        if name in MATRICES and pc.list_flatten(table[name]).null_count:
            flat, width = pc.list_flatten(whole.column(name)), table.schema.field(name).type.list_size
            _refuse(
                path,
                name,
                np.asarray(np.asarray(flat.is_null()).reshape(-1, width).any(axis=1)),
                whole,
                "lists of values",
            )
        if _wrong_rows(table[name], name).any():
            low, high, meaning, _ = _bounds_of(name)
            bound = f"{low:g} or more, and at most {high:g}" if high > _COUNTED else f"{low:g} to {high:g}"
            _refuse(path, name, _wrong_rows(whole.column(name), name), whole, f"{bound} ({meaning})")


def _wrong_rows(column: pa.ChunkedArray[Any], name: str) -> NDArray[np.bool_]:
    """(N,) which rows hold a value out of bounds; no nulls."""
    bounds = _bounds_of(name)
    if name in SCALARS:
        return _wrong(column.to_numpy(), bounds)
    flat = pc.list_flatten(column).to_numpy()
    wrong = _wrong(flat, bounds)
    return np.asarray(wrong.reshape(len(column), -1).any(axis=1)) if wrong.any() else np.zeros(len(column), np.bool_)


def _wrong(values: NDArray[Any], bounds: _Bounds) -> NDArray[np.bool_]:
    inside = (values >= bounds.low) & (values <= bounds.high)  # false for NaN
    if bounds.nan:
        inside |= np.isnan(values)
    return np.asarray(~inside)


def _refuse(path: str, name: str, wrong: NDArray[np.bool_], whole: Whole, bound: str) -> None:
    row = int(np.argmax(wrong))
    value = whole.column(name)[row].as_py()
    if isinstance(value, list):
        low, high, *_ = _bounds_of(name)
        value = next((one for one in value if one is None or not low <= one <= high), None)
    more = f" and in {count - 1} more" if (count := int(wrong.sum())) > 1 else ""
    ends = np.cumsum(whole.group_rows())
    holds = f": {_PLURAL[name]} hold" if name in _PLURAL else f" holds {name}"
    raise ArchiveError(
        f"{path}{holds} {'null' if value is None else value} in row {row + 1}{more}: it must be {bound}, and "
        f"would be learned as that. Correct such rows, the first of them in row group "
        f"{int(np.searchsorted(ends, row, side='right'))}, or leave them out."
    )
