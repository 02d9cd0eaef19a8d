"""Archived examples as parquet: what base training reads.

An archive is one file, or a folder of part files, each with the examples of one stretch of a partition of the examples
topic: ``date=YYYY-MM-DD/p{partition}-{first_offset:020d}-{next_offset:020d}.parquet``. Every row of a part knows its
position in the topic, so that stretches may overlap (a restarted archiver writes some rows again): each counts once.
Rows are what the stream tells (`learners.examples.kinds`): displays, clicks, conversions. A log that has one row an
impression, with its ``label``, is read as well, as are archives of the time when the topic had such rows: their kinds
have the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.examples.archive_checks import Whole, check_types, check_values
from learners.examples.archive_parts import ArchiveError
from learners.examples.examples import MATRICES, REQUIRED, SCALARS, Examples
from learners.features.rows import Rows

T = TypeVar("T")


def read_examples(
    path: Path | str, *, spec_hash: str | None = None, known_ms: tuple[int, int] | None = None
) -> Examples:
    """Read an archive, a file or a folder tree of them, also behind an fsspec URL, into memory.

    With 40 ids and 36 dense inputs a row takes some 550 bytes.
    Rows from a topic are ordered by partition, offset and ordinal, each once; rows from elsewhere come first, in
    the order of their files' names and of their rows.

    Parameters
    ----------
    known_ms
        From and until (not included): only events in between.

    Raises
    ------
    ArchiveError
        No parquet files of examples, or of another feature spec than ``spec_hash``, or of several specs; a column of
        another type, a null, a value out of its bounds.
    """
    parts: list[Examples] = []
    for file in _files(path):
        parts.append(_read_file(file, parts[0].spec_hash if parts else spec_hash, known_ms))
    return _each_place_once(_joined(parts))


def log_reach(path: Path | str, *, until_ms: int = 2**62) -> dict[int, int]:
    """Partition → the offset up to which an archive holds the topic; none for examples that came from no topic.

    With ``until_ms`` the offset of the first event of then or later: where a stream goes on must be one position in its
    log, so that also earlier events behind that one are beyond it. Raises ArchiveError.
    """
    ends: dict[int, int] = {}
    beyond: dict[int, int] = {}
    for file in _files(path):
        if not {"partition", "offset"} <= set(_read_schema(file).names):  # refuses what is no archive
            continue
        read = partial(pq.read_table, columns=["partition", "offset", "known_ms"], partitioning=None)
        table = _of_parquet(file, read)
        check_values(file.path, table, _whole(file))
        partition, offset, known_ms = (table[name].to_numpy() for name in ("partition", "offset", "known_ms"))
        for one in np.unique(partition[partition >= 0]).tolist():
            here = partition == one
            ends[one] = max(ends.get(one, 0), int(offset[here].max()) + 1)
            late = offset[here & (known_ms >= until_ms)]
            if len(late):
                beyond[one] = min(beyond.get(one, ends[one]), int(late.min()))
    return ends | beyond


def spec_name_of(path: Path | str) -> str:
    """The name of the feature spec that an archive was written under. Raises ArchiveError."""
    file = _files(path)[0]
    return _spec_of(file, _read_schema(file))[0]


class _File(NamedTuple):
    path: str
    store: Any  # an fsspec file system


def _files(path: Path | str) -> list[_File]:
    try:
        store, root = fsspec.core.url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise ArchiveError(
            f"{path} cannot be reached ({error}): there is nothing to read. Give a folder, or install what its "
            "protocol needs."
        ) from error
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
    positions = np.stack([column[order] for column in (partition, offset, ordinal)])
    again = (positions[:, 1:] == positions[:, :-1]).all(axis=0) & (positions[0, 1:] >= 0)
    kept = order[np.concatenate((np.ones(min(1, len(order)), np.bool_), ~again))]
    if np.array_equal(kept, np.arange(len(examples))):
        return examples
    return examples.take(kept)


def _read_file(file: _File, spec_hash: str | None, known_ms: tuple[int, int] | None) -> Examples:
    spec_name, found = _spec_of(file, _read_schema(file))
    if spec_hash is not None and found != spec_hash:
        raise ArchiveError(
            f"{file.path} was encoded with feature spec {found}, this run has {spec_hash}: its columns mean other "
            "fields. Use that spec, or encode the log again."
        )
    column = pc.field("known_ms")
    within = (column >= known_ms[0]) & (column < known_ms[1]) if known_ms else None
    # partitioning=None: the day in a folder's name is no column
    read = partial(pq.read_table, filters=within, partitioning=None)
    table = _of_parquet(file, read)
    check_values(file.path, table, _whole(file))
    columns = {
        name: table[name].to_numpy().astype(dtype, copy=False)
        if name in table.column_names
        else np.full(table.num_rows, default, dtype)
        for name, (dtype, default) in SCALARS.items()
    }
    return Examples(
        spec_name=spec_name,
        spec_hash=found,
        rows=Rows(_matrix(table, "ids"), _matrix(table, "dense")),
        columns=columns,
    )


def _read_schema(file: _File) -> pa.Schema:
    schema = _of_parquet(file, pq.read_schema)
    lacks = sorted(REQUIRED - set(schema.names)) or [
        name for name in ("spec_hash", "spec_name") if name.encode() not in (schema.metadata or {})
    ]
    if lacks:
        raise ArchiveError(
            f"{file.path} is no archive of examples: it lacks {', '.join(lacks)}. Write it with write_examples."
        )
    if not {"kind", "label"} & set(schema.names):
        raise ArchiveError(
            f"{file.path} holds neither kind nor label: every row would be learned as a display that nobody clicked. "
            "Write kind (0 display, 1 click, 2 conversion), or label where a display tells whether it was clicked."
        )
    check_types(file.path, schema)
    return schema


def _spec_of(file: _File, schema: pa.Schema) -> tuple[str, str]:
    """Name and hash of the feature spec."""
    raw = schema.metadata[b"spec_name"], schema.metadata[b"spec_hash"]
    name, hash_ = (one.decode(errors="replace") for one in raw)
    if not (name.isprintable() and hash_.isprintable()):
        raise ArchiveError(
            f"{file.path} names a feature spec {raw[0][:80]!r} of hash {raw[1][:80]!r}, which is no text: it is no "
            "archive, or damaged. Write it with write_examples."
        )
    return name, hash_


def _whole(file: _File) -> Whole:
    def column(name: str) -> pa.ChunkedArray[Any]:
        return _of_parquet(file, partial(pq.read_table, columns=[name], partitioning=None))[name]

    def group_rows() -> list[int]:
        metadata = _of_parquet(file, pq.read_metadata)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    return Whole(column, group_rows)


def _of_parquet(file: _File, read: Callable[..., T]) -> T:
    try:
        return read(file.path, filesystem=file.store)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArchiveError(
            f"{file.path} cannot be read as parquet: {error}. Write it again, or take another file."
        ) from error


def _matrix(table: pa.Table, name: str) -> NDArray[Any]:
    width = table.schema.field(name).type.list_size
    flat = pc.list_flatten(table[name]).to_numpy()
    return np.asarray(flat, MATRICES[name]).reshape(table.num_rows, width)
