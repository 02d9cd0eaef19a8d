"""Archived examples as parquet: what base training reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.kinds import CORRECTION, SETTLED
from learners.rows import Rows

# Column → dtype and the value where there is none.
SCALARS: Mapping[str, tuple[str, float]] = {
    "impression_id": ("u8", 0),
    "label": ("u1", 0),
    "ts_ms": ("i8", 0),
    "known_ms": ("i8", 0),
    "kind": ("u1", SETTLED),
    "weight": ("f4", 1.0),
    "user_key": ("u8", 0),
    "delay_ms": ("i8", -1),
    "value": ("f4", 0.0),
    "logit": ("f4", 0.0),
    "p": ("f4", 0.0),
    "propensity": ("f4", 1.0),
    "model_version": ("i8", 0),
    "click_produced_ms": ("i8", 0),
}
MATRICES: Mapping[str, str] = {"ids": "u8", "dense": "f4"}


class ArchiveError(ValueError):
    """An archive that cannot be written or used."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """N archived examples: ``rows`` are their ids and dense inputs, ``columns`` the rest, each (N,)."""

    spec_name: str
    spec_hash: str
    rows: Rows
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.rows.ids)

    def settled(self) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Indices of the settled examples and their labels as known in the end: a correction makes its row a click."""
        kind, impression = self.columns["kind"], self.columns["impression_id"]
        settled = np.flatnonzero(kind == SETTLED)
        corrected = np.isin(impression[settled], impression[kind == CORRECTION])
        return settled, self.columns["label"][settled].astype(np.bool_) | corrected


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
    def label(self) -> NDArray[np.uint8]:
        """(N,)."""
        ...

    @property
    def ts_ms(self) -> NDArray[np.int64]:
        """(N,), display time."""
        ...

    @property
    def known_ms(self) -> NDArray[np.int64]:
        """(N,), event time at which the label became known."""
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


def write_examples(path: Path, examples: Encoded, spec: NamedSpec) -> None:
    """Write N examples, whole or not at all.

    Raises
    ------
    ArchiveError
        A column of another length than ``ids``.
    """
    table = pa.table(
        [_fixed(examples.ids, "ids"), _fixed(examples.dense, "dense")]
        + [pa.array(_vector(examples, name)) for name in SCALARS],
        names=[*MATRICES, *SCALARS],
    ).replace_schema_metadata({"spec_name": spec.name, "spec_hash": spec.hash})
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(table, unfinished, compression="zstd")
    os.replace(unfinished, path)


def read_examples(path: Path, *, spec_hash: str | None = None) -> Examples:
    """Read one archive file.

    Raises
    ------
    ArchiveError
        Not a parquet file of examples, or of another feature spec than ``spec_hash``.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(
            f"{path} cannot be read as parquet: {error}. Write it again, or take another file."
        ) from error
    metadata = table.schema.metadata or {}
    if missing := sorted({*MATRICES, *SCALARS} - set(table.column_names)) or b"spec_hash" not in metadata:
        raise ArchiveError(
            f"{path} is no archive of examples: it lacks {missing or 'spec_hash'}. Write it with write_examples."
        )
    found = metadata[b"spec_hash"].decode()
    if spec_hash is not None and found != spec_hash:
        raise ArchiveError(
            f"{path} was encoded with feature spec {found}, this run has {spec_hash}: its columns mean other fields. "
            "Use that spec, or encode the log anew."
        )
    return Examples(
        spec_name=metadata[b"spec_name"].decode(),
        spec_hash=found,
        rows=Rows(_matrix(table, "ids"), _matrix(table, "dense")),
        columns={name: table[name].to_numpy() for name in SCALARS},
    )


def _fixed(matrix: NDArray[Any], name: str) -> pa.Array[Any]:
    flat = np.ascontiguousarray(matrix, dtype=MATRICES[name]).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])


def _vector(examples: Encoded, name: str) -> NDArray[Any]:
    dtype, default = SCALARS[name]
    rows = len(examples.ids)
    values = getattr(examples, name, None)
    if values is None:
        return np.full(rows, default, dtype)
    if values.shape != (rows,) or len(examples.dense) != rows:
        raise ArchiveError(
            f"column {name} is {values.shape} beside {rows} rows of ids and {len(examples.dense)} of dense: all must "
            "have one value a row, else labels would slip to other ids. Pass columns of one batch."
        )
    return np.ascontiguousarray(values, dtype=dtype)


def _matrix(table: pa.Table, name: str) -> NDArray[Any]:
    width = table.schema.field(name).type.list_size
    flat = pc.list_flatten(table[name]).to_numpy()
    return np.asarray(flat).reshape(table.num_rows, width)
