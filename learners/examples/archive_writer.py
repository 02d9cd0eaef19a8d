"""Examples written as parquet, each file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.examples.archive_parts import ArchiveError, LogRange
from learners.examples.examples import MATRICES, SCALARS


class Encoded(Protocol):
    """What must be known of N examples; further columns of ``SCALARS`` are taken where the object has them."""

    @property
    def ids(self) -> NDArray[np.uint64]:
        """(N, F)."""
        ...

    @property
    def dense(self) -> NDArray[np.float32]:
        """(N, K)."""
        ...

    @property
    def impression_id(self) -> NDArray[np.uint64]:
        """(N,)."""
        ...

    @property
    def ts_ms(self) -> NDArray[np.int64]:
        """(N,), display time."""
        ...

    @property
    def known_ms(self) -> NDArray[np.int64]:
        """(N,), event time of the display, click or conversion; of an exposure with a label, when that became known."""
        ...


class NamedSpec(Protocol):
    """What an archive records of a feature spec."""

    @property
    def name(self) -> str:
        """Under which it can be loaded."""
        ...

    @property
    def hash(self) -> str:
        """What its columns mean."""
        ...


def write_part(
    folder: Path,
    day: date,
    log_range: LogRange,
    examples: Encoded,
    spec: NamedSpec,
    *,
    offset: NDArray[np.int64],
    ordinal: NDArray[np.int32],
) -> Path:
    """Write all N examples of a range as a part file, whole or not at all; returns its path once it is on the disk.

    Parameters
    ----------
    offset
        (N,) of the record that each row came in.
    ordinal
        (N,) index of the row in its record.

    Raises
    ------
    ArchiveError
        Columns of different lengths, an offset outside the range.
    """
    if len(offset) and not (log_range.first_offset <= int(offset.min()) and int(offset.max()) < log_range.next_offset):
        raise ArchiveError(
            f"offsets {int(offset.min())}..{int(offset.max())} must lie in {log_range}: a reader would take the part "
            "for other records. Cut the part at its offsets."
        )
    path = log_range.path(folder, day)
    path.parent.mkdir(parents=True, exist_ok=True)
    partition = np.full(len(offset), log_range.partition, np.int32)
    _write(path, examples, spec, {"partition": partition, "offset": offset, "ordinal": ordinal})
    return path


def write_examples(path: Path, examples: Encoded, spec: NamedSpec) -> None:
    """Write N examples, whole or not at all.

    Raises
    ------
    ArchiveError
        A column of another length than ``ids``.
    """
    _write(path, examples, spec, {})


def _write(path: Path, examples: Encoded, spec: NamedSpec, positions: Mapping[str, NDArray[Any]]) -> None:
    # No label where the examples have none: a 0 beside an exposure would read as if it were not clicked.
    scalars = [name for name in SCALARS if name != "label" or hasattr(examples, "label")]
    table = pa.table(
        [_fixed(examples.ids, "ids"), _fixed(examples.dense, "dense")]
        + [pa.array(_vector(examples, name, positions)) for name in scalars],
        names=[*MATRICES, *scalars],
    ).replace_schema_metadata({"spec_name": spec.name, "spec_hash": spec.hash})
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())  # an archiver commits its offsets next: what they skip must be on the disk
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()  # it would hold the space that the next try needs
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fixed(matrix: NDArray[Any], name: str) -> pa.Array[Any]:
    flat = np.ascontiguousarray(matrix, dtype=MATRICES[name]).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])


def _vector(examples: Encoded, name: str, positions: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    dtype, default = SCALARS[name]
    rows = len(examples.ids)
    values = positions[name] if name in positions else getattr(examples, name, None)
    if values is None:
        return np.full(rows, default, dtype)
    if values.shape != (rows,) or len(examples.dense) != rows:
        raise ArchiveError(
            f"column {name} is {values.shape} beside {rows} rows of ids and {len(examples.dense)} of dense: all must "
            "have one value a row, else they would slip to other ids. Pass columns of one batch."
        )
    return np.ascontiguousarray(values, dtype=dtype)
