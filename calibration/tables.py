"""Reads files of labels and predictions: CSV, NumPy .npz, Parquet; also of examples, see `examples_file`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.examples_file import (
    CLICK_WINDOW_S,
    EXAMPLE_COLUMNS,
    check_measurable,
    labelled,
    parquet_table,
    slice_values,
)
from calibration.logistic import logit, sigmoid

COLUMNS = ("label", "logit", "p")


@dataclass(frozen=True, slots=True)
class Predictions:
    """N labelled or unlabelled predictions; each field (N,) or None when the file has no such column."""

    label: NDArray[np.bool_] | None
    logit: NDArray[np.float64] | None
    p: NDArray[np.float64] | None
    slices: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def labels(self) -> NDArray[np.bool_]:
        """(N,) labels; ValueError when the file has none."""
        if self.label is None:
            raise ValueError("no column 'label': nothing to compare the predictions with. Add it as 0 or 1.")
        return self.label

    def logits(self) -> NDArray[np.float64]:
        """(N,) log-odds, from p when there is no column of them; ValueError where p is 0 or 1."""
        if self.logit is not None:
            return self.logit
        p = self.probabilities()
        inside = (p > 0) & (p < 1)
        if not inside.all():
            row = int(np.argmin(inside))
            raise ValueError(f"p={p[row]} in row {row + 1} has no finite logit: give the column 'logit' instead.")
        return logit(p)

    def probabilities(self) -> NDArray[np.float64]:
        """(N,) probabilities, from the logits when there is no column of them."""
        if self.p is not None:
            return self.p
        if self.logit is None:
            raise ValueError("neither a column 'logit' nor 'p': there is no prediction. Name one of them so.")
        return sigmoid(self.logit)


def read_predictions(path: Path, slices: Sequence[str] = (), *, click_window_s: float = CLICK_WINDOW_S) -> Predictions:
    """The columns label, logit and p of a file, chosen by its suffix; other columns are left alone.

    A Parquet file without labels but with the column ``kind``, or a folder of such files (an archive), holds examples:
    its exposures are labelled by its clicks, and those younger than ``click_window_s`` at its end are left out. Slices
    are read from Parquet only, see `examples_file.slice_values`.

    Raises FileNotFoundError, and ValueError that names the column and the row (the first row of data is 1)
    for a value that is no number, a label outside {0, 1}, a logit that is not finite or a p outside [0, 1]; for
    a file with both kind and label, and examples without a mature exposure or served by no model.
    """
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.is_dir() or (path.suffix == ".parquet" and path.is_file()):
        return _read_parquet(path, slices, click_window_s)
    if slices:
        raise ValueError(f"{path}: slices {', '.join(slices)} are read from Parquet only: convert the file.")
    if path.suffix not in readers and path.suffix != ".parquet":
        raise ValueError(
            f"{path}: suffix {path.suffix!r} is not one of {', '.join(readers)}, .parquet: convert the file."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give a file with the columns label and logit or p.")
    try:
        columns = {name: _numbers(name, values) for name, values in readers[path.suffix](path).items()}
        _check(columns)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: no CSV in UTF-8 ({error}): save it as that, or name it by its own suffix."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    label = columns.get("label")
    return Predictions(None if label is None else label == 1, columns.get("logit"), columns.get("p"))


def _read_csv(path: Path) -> Mapping[str, Any]:
    with path.open(newline="", encoding="utf-8") as lines:
        rows = csv.reader(lines)
        header = [name.strip() for name in next(rows, [])]
        wanted = {name: header.index(name) for name in COLUMNS if name in header}
        columns: dict[str, list[str]] = {name: [] for name in wanted}
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise ValueError(f"row {number} has {len(row)} fields, the header {len(header)}: the file is damaged.")
            for name, at in wanted.items():
                columns[name].append(row[at])
    return columns


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in COLUMNS if name in archive.files}
    except Exception as error:  # numpy raises zipfile, pickle and OS errors for a damaged archive
        raise ValueError(f"not a readable .npz archive ({error}): write it with numpy.savez.") from error


def _read_parquet(path: Path, slices: Sequence[str], click_window_s: float) -> Predictions:
    try:
        table = parquet_table(path)
        if {"kind", "label"} <= set(table.column_names):
            raise ValueError(
                "has the columns kind and label: an archive of examples has kind, and its clicks are rows; "
                "labelled rows, one an impression, have label. Drop or rename the one that does not say what it is."
            )
        values = slice_values(table, slices)
        columns = {name: table.column(name).to_numpy() for name in COLUMNS if name in table.column_names}
        if "label" not in columns and set(EXAMPLE_COLUMNS) <= set(table.column_names):
            events = {name: table.column(name).to_numpy() for name in EXAMPLE_COLUMNS}
            rows, clicked = labelled(events, click_window_s)
            versions = table.column("model_version").to_numpy() if "model_version" in table.column_names else None
            check_measurable(rows, events["kind"], versions, click_window_s)
            columns = {name: column[rows] for name, column in columns.items()} | {"label": clicked}
            values = {name: column[rows] for name, column in values.items()}
        numbers = {name: _numbers(name, column) for name, column in columns.items()}
        _check(numbers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    label = numbers.get("label")
    return Predictions(None if label is None else label == 1, numbers.get("logit"), numbers.get("p"), values)


def _numbers(name: str, values: Any) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        row = next(i for i, value in enumerate(values, start=1) if not _is_number(value))
        raise ValueError(f"{name}={values[row - 1]!r} in row {row} is not a number: mend or drop the row.") from None
    if numbers.ndim != 1:
        raise ValueError(f"column {name} has shape {numbers.shape}, expected one number a row: flatten it.")
    return numbers


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check(columns: Mapping[str, NDArray[np.float64]]) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length ({lengths}): pair them first.")
    bounds: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.bool_]], str]] = {
        "label": (lambda x: (x == 0) | (x == 1), "outside {0, 1}"),
        "logit": (np.isfinite, "not finite"),
        "p": (lambda x: (x >= 0) & (x <= 1), "outside [0, 1]"),
    }
    for name, values in columns.items():
        holds, fault = bounds[name]
        good = holds(values)
        if not good.all():
            row = int(np.argmin(good))
            raise ValueError(f"{name}={values[row]:g} in row {row + 1} is {fault}: mend or drop the row.")
