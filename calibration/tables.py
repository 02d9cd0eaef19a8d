"""Reads files of labels and predictions: CSV, NumPy .npz, Parquet; also of examples, see `examples_file`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.columns import COLUMNS, check_bounds, check_names, numbers_of
from calibration.examples_file import (
    CLICK_WINDOW_S,
    EXAMPLE_COLUMNS,
    check_measurable,
    column_of,
    event_columns,
    labelled,
    parquet_table,
    slice_values,
)
from calibration.logistic import logit, sigmoid


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
    for a value that is no number or out of its bound (`columns.BOUNDS`), a column that is nearly called so; for
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
        columns = {name: numbers_of(name, values) for name, values in readers[path.suffix](path).items()}
        check_bounds(columns)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: no CSV in UTF-8 ({error}): save it as that, or name it by its own suffix."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    label = columns.get("label")
    return Predictions(None if label is None else label == 1, columns.get("logit"), columns.get("p"))


def _read_csv(path: Path) -> Mapping[str, Any]:
    with path.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets write a byte order mark
        rows = csv.reader(lines)
        header = [name.strip() for name in next(rows, [])]
        check_names(header)
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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names, columns = archive.files, {name: archive[name] for name in COLUMNS if name in archive.files}
    except Exception as error:  # numpy raises zipfile, pickle and OS errors for a damaged archive
        raise ValueError(f"not a readable .npz archive ({error}): write it with numpy.savez.") from error
    check_names(names)
    return columns


def _read_parquet(path: Path, slices: Sequence[str], click_window_s: float) -> Predictions:
    try:
        table, locate = parquet_table(path)
        check_names(table.column_names)
        if {"kind", "label"} <= set(table.column_names):
            raise ValueError(
                "has the columns kind and label: an archive of examples has kind, and its clicks are rows; "
                "labelled rows, one an impression, have label. Drop or rename the one that does not say what it is."
            )
        values = slice_values(table, slices)
        columns = {name: column_of(table, name) for name in COLUMNS if name in table.column_names}
        numbers = {name: numbers_of(name, column, locate) for name, column in columns.items()}
        check_bounds(numbers, locate)
        if "label" not in columns and set(EXAMPLE_COLUMNS) <= set(table.column_names):
            events = event_columns(table, locate)
            rows, clicked = labelled(events, click_window_s)
            check_measurable(rows, events["kind"], events.get("model_version"), click_window_s)
            numbers = {name: column[rows] for name, column in numbers.items()} | {"label": clicked.astype(np.float64)}
            values = {name: column[rows] for name, column in values.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    label = numbers.get("label")
    return Predictions(None if label is None else label == 1, numbers.get("logit"), numbers.get("p"), values)
