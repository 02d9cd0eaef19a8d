"""Archived examples as parquet: what base training reads.

An archive is one file, or a folder of part files, each with the examples of one stretch of a partition of the examples
topic: ``date=YYYY-MM-DD/p{partition}-{first_offset:020d}-{next_offset:020d}.parquet``. Every row of a part knows its
place in the topic, so that stretches may overlap (a restarted archiver writes some rows again): each place counts once.
Rows are what the stream tells (`learners.kinds`): displays, clicks, conversions. A log that has one row an impression,
with its ``label``, is read as well, as are archives of the time when the topic had such rows: their kinds have the same
numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import fsspec  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.examples import MATRICES, REQUIRED, SCALARS, Examples
from learners.kinds import CONVERSION
from learners.rows import Rows

__all__ = [
    "MATRICES", "SCALARS", "ArchiveError", "Encoded", "Examples", "LogStretch", "NamedSpec", "archived_up_to",
    "log_reach", "read_examples", "spec_name_of", "write_examples", "write_part",
]  # fmt: skip

T = TypeVar("T")

_PART = re.compile(r"p(\d+)-(\d{20})-(\d{20})\.parquet")


class ArchiveError(ValueError):
    """An archive that cannot be written or used."""


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


class LogStretch(NamedTuple):
    """The records of one partition from ``first_offset`` up to, but not including, ``next_offset``."""

    partition: int
    first_offset: int
    next_offset: int

    def path(self, folder: Path, day: date) -> Path:
        """Where its part file lies. The day is for people and for deleting old parts; nothing is read from it."""
        name = f"p{self.partition}-{self.first_offset:020d}-{self.next_offset:020d}.parquet"
        return folder / f"date={day.isoformat()}" / name

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The stretch that a part file's name tells; None for any other file."""
        match = _PART.fullmatch(path.name)
        return cls(*(int(number) for number in match.groups())) if match else None


def write_part(
    folder: Path,
    day: date,
    stretch: LogStretch,
    examples: Encoded,
    spec: NamedSpec,
    *,
    offset: NDArray[np.int64],
    ordinal: NDArray[np.int32],
) -> Path:
    """Write all N examples of a stretch as a part file, whole or not at all; returns its path once it is on the disk.

    Parameters
    ----------
    offset
        (N,) of the record that each row came in.
    ordinal
        (N,) place of the row in its record.

    Raises
    ------
    ArchiveError
        Columns of different lengths, an offset outside the stretch.
    """
    if len(offset) and not (stretch.first_offset <= int(offset.min()) and int(offset.max()) < stretch.next_offset):
        raise ArchiveError(
            f"offsets {int(offset.min())}..{int(offset.max())} must lie in {stretch}: a reader would take the part for "
            "other records. Cut the part at its offsets."
        )
    path = stretch.path(folder, day)
    path.parent.mkdir(parents=True, exist_ok=True)
    partition = np.full(len(offset), stretch.partition, np.int32)
    _write(path, examples, spec, {"partition": partition, "offset": offset, "ordinal": ordinal})
    return path


def archived_up_to(folder: Path) -> dict[int, int]:
    """Partition → the first offset that no part file under ``folder`` holds, from which an archiver goes on."""
    found: dict[int, int] = {}
    for path in folder.rglob("*.parquet"):
        if stretch := LogStretch.of(path):
            found[stretch.partition] = max(found.get(stretch.partition, 0), stretch.next_offset)
    return found


def write_examples(path: Path, examples: Encoded, spec: NamedSpec) -> None:
    """Write N examples, whole or not at all.

    Raises
    ------
    ArchiveError
        A column of another length than ``ids``.
    """
    _write(path, examples, spec, {})


def _write(path: Path, examples: Encoded, spec: NamedSpec, places: Mapping[str, NDArray[Any]]) -> None:
    # No label where the examples have none: a 0 beside an exposure would read as if it were not clicked.
    scalars = [name for name in SCALARS if name != "label" or hasattr(examples, "label")]
    table = pa.table(
        [_fixed(examples.ids, "ids"), _fixed(examples.dense, "dense")]
        + [pa.array(_vector(examples, name, places)) for name in scalars],
        names=[*MATRICES, *scalars],
    ).replace_schema_metadata({"spec_name": spec.name, "spec_hash": spec.hash})
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())  # an archiver commits its offsets next: what they skip must be on the disk
    os.replace(unfinished, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_examples(
    path: Path | str, *, spec_hash: str | None = None, known_ms: tuple[int, int] | None = None
) -> Examples:
    """Read an archive, a file or a folder tree of them, also behind an fsspec URL, into memory.

    With 40 ids and 36 dense inputs a row takes some 550 bytes.
    Rows from a topic are ordered by partition, offset and ordinal, each place once; rows from elsewhere come first, in
    the order of their files' names and of their rows.

    Parameters
    ----------
    known_ms
        From and until (not included): only events in between.

    Raises
    ------
    ArchiveError
        No parquet files of examples, or of another feature spec than ``spec_hash``, or of several specs; a label beyond
        1, an unknown kind.
    """
    parts: list[Examples] = []
    for file in _files(path):
        parts.append(_read_file(file, parts[0].spec_hash if parts else spec_hash, known_ms))
    return _each_place_once(_joined(parts))


def log_reach(path: Path | str, *, until_ms: int = 2**62) -> dict[int, int]:
    """Partition → the offset up to which an archive holds the topic; none for examples that came from no topic.

    With ``until_ms`` the offset of the first event of then or later: where a stream goes on must be one place in its
    log, so that also earlier events behind that one are beyond it. Raises ArchiveError.
    """
    ends: dict[int, int] = {}
    beyond: dict[int, int] = {}
    for file in _files(path):
        if not {"partition", "offset"} <= set(_read_schema(file).names):  # refuses what is no archive
            continue
        read = partial(pq.read_table, columns=["partition", "offset", "known_ms"], partitioning=None)
        partition, offset, known_ms = (column.to_numpy() for column in _of_parquet(file, read).columns)
        for one in np.unique(partition[partition >= 0]).tolist():
            here = partition == one
            ends[one] = max(ends.get(one, 0), int(offset[here].max()) + 1)
            late = offset[here & (known_ms >= until_ms)]
            if len(late):
                beyond[one] = min(beyond.get(one, ends[one]), int(late.min()))
    return ends | beyond


def spec_name_of(path: Path | str) -> str:
    """The name of the feature spec that an archive was written under. Raises ArchiveError."""
    return _read_schema(_files(path)[0]).metadata[b"spec_name"].decode()


class _File(NamedTuple):
    path: str
    store: Any  # an fsspec file system


def _files(path: Path | str) -> list[_File]:
    store, root = fsspec.core.url_to_fs(str(path))
    if not store.isdir(root):
        return [_File(root, store)]
    found = sorted(file for file in store.find(root) if file.endswith(".parquet"))
    if not found:
        raise ArchiveError(f"{path} holds no *.parquet file: there is nothing to read. Give the archiver's folder.")
    return [_File(file, store) for file in found]


def _joined(parts: list[Examples]) -> Examples:
    first = parts[0]
    return Examples(
        spec_name=first.spec_name,
        spec_hash=first.spec_hash,
        rows=Rows(np.concatenate([p.rows.ids for p in parts]), np.concatenate([p.rows.dense for p in parts])),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in SCALARS},
    )


def _each_place_once(examples: Examples) -> Examples:
    partition, offset, ordinal = (examples.columns[name] for name in ("partition", "offset", "ordinal"))
    order = np.lexsort((ordinal, offset, partition))  # stable
    places = np.stack([column[order] for column in (partition, offset, ordinal)])
    again = (places[:, 1:] == places[:, :-1]).all(axis=0) & (places[0, 1:] >= 0)
    kept = order[np.concatenate((np.ones(min(1, len(order)), np.bool_), ~again))]
    if np.array_equal(kept, np.arange(len(examples))):
        return examples
    return examples.take(kept)


def _read_file(file: _File, spec_hash: str | None, known_ms: tuple[int, int] | None) -> Examples:
    metadata = _read_schema(file).metadata
    found = metadata[b"spec_hash"].decode()
    if spec_hash is not None and found != spec_hash:
        raise ArchiveError(
            f"{file.path} was encoded with feature spec {found}, this run has {spec_hash}: its columns mean other "
            "fields. Use that spec, or encode the log anew."
        )
    column = pc.field("known_ms")
    within = (column >= known_ms[0]) & (column < known_ms[1]) if known_ms else None
    # partitioning=None: the day in a folder's name is no column
    read = partial(pq.read_table, filters=within, partitioning=None)
    table = _of_parquet(file, read)
    columns = {
        name: table[name].to_numpy() if name in table.column_names else np.full(table.num_rows, default, dtype)
        for name, (dtype, default) in SCALARS.items()
    }
    for name, largest, meaning in (("label", 1, "a click or none"), ("kind", CONVERSION, "a kind of example")):
        if len(wrong := np.flatnonzero(columns[name] > largest)):
            raise ArchiveError(
                f"{file.path} holds {name} {columns[name][wrong[0]]}, {len(wrong)} rows have none of 0 to {largest}: "
                f"that is not {meaning}, and would be learned as one. Leave such rows out."
            )
    return Examples(
        spec_name=metadata[b"spec_name"].decode(),
        spec_hash=found,
        rows=Rows(_matrix(table, "ids"), _matrix(table, "dense")),
        columns=columns,
    )


def _read_schema(file: _File) -> pa.Schema:
    schema = _of_parquet(file, pq.read_schema)
    if missing := sorted(REQUIRED - set(schema.names)) or b"spec_hash" not in (schema.metadata or {}):
        raise ArchiveError(
            f"{file.path} is no archive of examples: it lacks {missing or 'spec_hash'}. Write it with write_examples."
        )
    return schema


def _of_parquet(file: _File, read: Callable[..., T]) -> T:
    try:
        return read(file.path, filesystem=file.store)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(
            f"{file.path} cannot be read as parquet: {error}. Write it again, or take another file."
        ) from error


def _fixed(matrix: NDArray[Any], name: str) -> pa.Array[Any]:
    flat = np.ascontiguousarray(matrix, dtype=MATRICES[name]).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])


def _vector(examples: Encoded, name: str, places: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    dtype, default = SCALARS[name]
    rows = len(examples.ids)
    values = places[name] if name in places else getattr(examples, name, None)
    if values is None:
        return np.full(rows, default, dtype)
    if values.shape != (rows,) or len(examples.dense) != rows:
        raise ArchiveError(
            f"column {name} is {values.shape} beside {rows} rows of ids and {len(examples.dense)} of dense: all must "
            "have one value a row, else they would slip to other ids. Pass columns of one batch."
        )
    return np.ascontiguousarray(values, dtype=dtype)


def _matrix(table: pa.Table, name: str) -> NDArray[Any]:
    width = table.schema.field(name).type.list_size
    flat = pc.list_flatten(table[name]).to_numpy()
    return np.asarray(flat).reshape(table.num_rows, width)
