"""What the columns of a file of predictions may be called and may hold: checked before anything is measured of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("label", "logit", "p")

_SIMILAR_LENGTH = 4  # from which a name that lacks a letter, or has one too many, can still be told
_MOST_MS = (1 << 32) * 1000  # 2106

_NO_NUMBERS = "mMcV"  # times, complex numbers, structures: numpy makes floats of them, or of a part
Locate = Callable[[int], str]
"""Where a row, counted from 0, stands: "row 7", or "part.parquet, row group 0, row 7"."""


class Bound(NamedTuple):
    """What a number of a column must be."""

    holds: Callable[[NDArray[np.float64]], NDArray[np.bool_]]
    fault: str


def _range(low: float, high: float, said: str) -> Bound:
    return Bound(lambda x: (x >= low) & (x <= high), f"outside {said}")


BOUNDS: Mapping[str, Bound] = {
    "label": Bound(lambda x: (x == 0) | (x == 1), "outside {0, 1}"),
    "logit": Bound(lambda x: np.abs(x) <= float(np.finfo(np.float32).max), "not finite, or beyond float32"),
    "p": _range(0, 1, "[0, 1]"),
    "kind": Bound(lambda x: (x == 0) | (x == 1) | (x == 2), "outside {0, 1, 2}"),
    "ts_ms": _range(0, _MOST_MS, "1970 to 2106"),
    "known_ms": _range(0, _MOST_MS, "1970 to 2106"),
    "model_version": _range(0, 2**63, "[0, 2^63]"),
}


def row_of(index: int) -> str:
    """Rows of a file that is read as a whole: the first row of data is 1."""
    return f"row {index + 1}"


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a column that is there twice, or is nearly called label, logit or p while none is."""
    found = list(names)
    for name in COLUMNS:
        if found.count(name) > 1:
            raise ValueError(f"has {found.count(name)} columns {name!r}: either could be meant. Drop or rename one.")
    for name in found:
        for wanted in COLUMNS:
            if wanted not in found and _nearly(name, wanted):
                raise ValueError(
                    f"has the column {name!r}, which is nearly {wanted!r} and would be left out, so that another one "
                    f"were measured. Name it {wanted}, or drop it."
                )


def _nearly(name: str, wanted: str) -> bool:
    plain = "".join(letter for letter in name.casefold() if letter.isalnum())
    if plain == wanted:
        return True
    return len(wanted) >= _SIMILAR_LENGTH and wanted in _one_letter_off(plain, wanted)


def _one_letter_off(name: str, wanted: str) -> Collection[str]:
    """What ``name`` is with one letter less, one of ``wanted`` more, or two neighbours changed."""
    cuts = [(name[:at], name[at:]) for at in range(len(name) + 1)]
    near = {head + tail[1:] for head, tail in cuts if tail}
    near |= {head + tail[1] + tail[0] + tail[2:] for head, tail in cuts if len(tail) > 1}
    near |= {head + letter + tail for head, tail in cuts for letter in set(wanted)}
    return near


def numbers_of(name: str, values: Any, locate: Locate = row_of) -> NDArray[np.float64]:
    """A column as numbers, (N,). ValueError that names the first row that holds none."""
    found = np.asarray(values)
    if found.dtype.kind in _NO_NUMBERS:
        raise ValueError(f"column {name} holds {found.dtype}, which is no number: convert it.")
    try:
        with np.errstate(all="ignore"):
            numbers = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        row = next((at for at, value in enumerate(values) if not _is_number(value)), 0)
        raise ValueError(
            f"{name}={str(values[row])[:80]!r} in {locate(row)} is not a number: mend or drop the row."
        ) from None
    if numbers.ndim != 1:
        raise ValueError(f"column {name} has shape {numbers.shape}, expected one number a row: flatten it.")
    return numbers


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def check_bounds(columns: Mapping[str, NDArray[np.float64]], locate: Locate = row_of) -> None:
    """ValueError for columns of different lengths, or one whose number is out of its bound; it names column and row."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length ({lengths}): pair them first.")
    for name, values in columns.items():
        good = BOUNDS[name].holds(values)
        if not good.all():
            row = int(np.argmin(good))
            raise ValueError(f"{name}={values[row]:g} in {locate(row)} is {BOUNDS[name].fault}: mend or drop the row.")
