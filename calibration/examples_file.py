"""Reads a Parquet file, or a folder of them, of examples: exposures and clicks become labelled rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibration.columns import BOUNDS, Locate, check_bounds

CLICK_WINDOW_S: Final = 600.0
EXAMPLE_COLUMNS: Final = ("kind", "impression_id", "ts_ms", "known_ms")
_EXPOSURE, _CLICK = 0, 1  # of `learners.examples.kinds`
_SLICE: Final = re.compile(r"(?P<column>[^\[\]:]+)(\[(?P<at>\d+)\])?(:(?P<edges>[-+0-9.e,]+))?")


def labelled(columns: Mapping[str, NDArray[Any]], click_window_s: float) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The exposures among examples that are mature, each impression once, and whether they were clicked.

    columns : ``kind``, ``impression_id``, ``ts_ms`` and ``known_ms``, each (N,). An exposure younger than
    ``click_window_s`` at the last event is left out: its click may still come.
    """
    kind, impression, ts_ms, known_ms = (columns[name] for name in EXAMPLE_COLUMNS)
    if not len(kind):
        return np.zeros(0, np.intp), np.zeros(0, np.bool_)
    mature = (kind == _EXPOSURE) & (ts_ms <= int(known_ms.max()) - click_window_s * 1000.0)
    exposed = np.flatnonzero(mature)
    _, first = np.unique(impression[exposed], return_index=True)
    rows = exposed[np.sort(first)]
    return rows, np.isin(impression[rows], impression[kind == _CLICK])


def check_measurable(
    rows: NDArray[np.intp], kind: NDArray[Any], model_version: NDArray[Any] | None, click_window_s: float
) -> None:
    """Raises ValueError where the M exposures that `labelled` found are none, or where no model served them.

    rows : (M,); kind, model_version : (N,), None where the archive does not tell.
    """
    exposures = int((kind == _EXPOSURE).sum())
    if not exposures:
        raise ValueError(
            f"none of {len(kind)} rows is an exposure (kind 0): there is nothing to measure. Give another."
        )
    if not len(rows):
        raise ValueError(
            f"all {exposures} exposures are younger than {click_window_s:g} s; --click-window-s takes another age. "
            "Their clicks may still come, so there is nothing to measure yet."
        )
    if model_version is not None and not model_version[rows].any():
        raise ValueError(
            "these rows were served by no model (model_version 0): their logit and p are placeholders, and say nothing "
            "of any model. Give an archive that a worker wrote beside serving."
        )


def slice_values(table: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The values of slices, by name: a column, ``ids[3]`` of a column of lists, ``dense[1]:0.5,2`` cut at edges.

    Raises ValueError for a name that is none of these, or of a column that does not exist.
    """
    return {name: _slice(table, name) for name in names}


def _slice(table: Any, name: str) -> NDArray[Any]:
    match = _SLICE.fullmatch(name)
    if match is None or match["column"] not in table.column_names:
        raise ValueError(
            f"slice {name!r} is no column; there are {', '.join(table.column_names)}. Give one of them, ids[3] for the "
            "fourth of a list, or dense[1]:0.5,2 to cut at edges."
        )
    column = table.column(match["column"]).combine_chunks()
    if match["at"] is not None:
        width = len(column.flatten()) // max(len(column), 1)
        if int(match["at"]) >= width:
            raise ValueError(f"slice {name!r}: the lists of {match['column']} hold {width} values. Count from 0.")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        if column.null_count or len(flat) != width * len(column):
            raise ValueError(f"slice {name!r}: the lists of {match['column']} differ in length. Mend them.")
        values = flat.reshape(-1, width)[:, int(match["at"])]
    else:
        values = column.to_numpy(zero_copy_only=False)
    if match["edges"] is None:
        return np.asarray(values)
    try:
        edges = np.array([float(edge) for edge in match["edges"].split(",")])
    except ValueError as error:
        raise ValueError(f"slice {name!r}: its edges are no numbers ({error}). Give them as 0.5,2.") from error
    ends = ["-inf", *(f"{edge:g}" for edge in edges), "inf"]
    names = np.array([f"[{low}, {high})" for low, high in pairwise(ends)])
    return np.asarray(names[np.searchsorted(edges, values, side="right")])


def event_columns(table: Any, locate: Locate) -> dict[str, NDArray[Any]]:
    """The columns that say what happened, each (N,), and ``model_version`` where there is one.

    Raises ValueError for a column of other values than whole numbers, or a number out of its bound.
    """
    names = [*EXAMPLE_COLUMNS, *(name for name in ("model_version",) if name in table.column_names)]
    columns = {name: column_of(table, name) for name in names}
    for name, column in columns.items():
        if column.dtype.kind not in "iu":
            nulls = np.asarray(table.column(name).is_null())
            what = f"null in {locate(int(np.argmax(nulls)))}" if nulls.any() else f"values of {column.dtype}"
            raise ValueError(
                f"column {name} holds {what}, which must be whole numbers: events would be taken for others. Mend it."
            )
    bounded = {name: column.astype(np.float64) for name, column in columns.items() if name in BOUNDS}
    check_bounds(bounded, locate)
    return columns


def column_of(table: Any, name: str) -> NDArray[Any]:
    """A column as numpy sees it. Raises ValueError for a type that it does not know, or a name that is there twice."""
    import pyarrow

    if table.column_names.count(name) > 1:
        raise ValueError(f"has {table.column_names.count(name)} columns {name!r}: either could be meant. Drop one.")
    try:
        return np.asarray(table.column(name).to_numpy())
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"column {name} of {table.schema.field(name).type} holds no numbers: convert it.") from error


def parquet_table(path: Path) -> tuple[Any, Locate]:
    """The table of a file or of all ``*.parquet`` below a folder, and where each of its rows stands.

    Raises ValueError when it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError("holds no *.parquet file: there is nothing to read.")
    try:
        tables = [pyarrow.parquet.read_table(file, partitioning=None) for file in files]
        table = pyarrow.concat_tables(tables)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"not a readable Parquet file ({error}): write it again.") from error
    groups = [
        (file, group, file_metadata.row_group(group).num_rows)
        for file in files
        for file_metadata in [pyarrow.parquet.read_metadata(file)]
        for group in range(file_metadata.num_row_groups)
    ]

    def locate(index: int) -> str:
        for file, group, rows in groups:
            if index < rows:
                inside = f"{file.relative_to(path)}, " if file != path else ""
                return f"{inside}row group {group}, row {index + 1}"
            index -= rows
        return f"row {index + 1}"

    return table, locate
