"""Files that people give to the programs: archives of examples, predictions to be measured, the logs of a dataset."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calibration.tables import read_predictions
from learners.examples.archive import read_examples
from learners.examples.archive_parts import ArchiveError
from learners.examples.archive_writer import write_examples
from learners.features.encode import Encoder
from learners.features.spec import load_spec
from replay.errors import DataError
from replay.kuairand import KuaiRand
from tests.fuzz.mutate import FLOATS, INTEGERS, TEXTS, arrays_changed, damaged
from tests.fuzz.target import TAKEN, Target, promised, rejected
from tests.learners.archived import encoded
from tests.replay.kuairand_files import random_rows, write_folder
from tests.stream.pipeline import SPEC, example_rows

_REASONS = ("archive", "predictions", "dataset")
_YEAR_2106_MS = 2**32 * 1000


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="millstream-fuzz-"))


# ------------------------------------------------------------------------------------------------------------- archive


@cache
def _archives() -> list[bytes]:
    path = _folder() / "seed.parquet"
    found = []
    labelled = encoded(6, id_columns=SPEC.id_columns, dense=SPEC.dense_inputs)
    for made in (labelled, example_rows(5, seed=1, kind=np.array([0, 1, 0, 2, 1], np.uint8))):
        write_examples(path, made, SPEC)
        found.append(path.read_bytes())
    return found


def _run_archive(value: bytes) -> str:
    path = _folder() / "examples.parquet"
    path.write_bytes(value)
    try:
        found = read_examples(path)
    except ArchiveError as error:
        return rejected("archive", str(error), _REASONS)
    columns = found.columns
    promised(
        np.isin(columns["label"], (0, 1)).all() and np.isin(columns["kind"], (0, 1, 2)).all(), "a label that is none"
    )
    for name in ("ts_ms", "known_ms"):
        promised(((columns[name] >= 0) & (columns[name] <= _YEAR_2106_MS)).all(), f"{name} of no time would be learned")
    promised((np.isfinite(columns["weight"]) & (columns["weight"] >= 0)).all(), "a weight that is none")
    promised(np.isfinite(found.rows.dense).all(), "dense inputs are not finite")
    promised(len(found.rows.ids) == len(found.rows.dense) == len(found), "columns differ in length")
    return TAKEN


_TYPES = (
    pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.binary(),
    pa.timestamp("ms"), pa.decimal128(20, 2), pa.dictionary(pa.int32(), pa.string()), pa.float16(), pa.null(),
)  # fmt: skip


def _parquet_changed(value: bytes, source: Random) -> bytes:
    table = pq.read_table(io.BytesIO(value))
    for _ in range(source.randint(1, 2)):
        table = _table_changed(table, source)
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=source.choice((None, 1, 2)))
    return out.getvalue()


def _table_changed(table: pa.Table, source: Random) -> pa.Table:
    at, how = source.randrange(max(1, table.num_columns)), source.randrange(10)
    if how == 0 or not table.num_columns:
        return table.append_column(source.choice(("kind", "label", "p", "x", "", "offset")), pa.nulls(table.num_rows))
    name, column = table.column_names[at], table.column(at)
    if how == 1:
        return table.remove_column(at)
    if how == 2:
        return table.append_column(name, column)
    if how == 3:
        return table.rename_columns([one if i != at else f"{name} " for i, one in enumerate(table.column_names)])
    if how == 4:
        return table.slice(0, source.randrange(table.num_rows + 1))
    if how == 5:
        metadata = {k: source.choice((v, b"\xff", v * 2)) for k, v in (table.schema.metadata or {}).items()}
        return table.replace_schema_metadata(metadata)
    wanted = source.choice(_TYPES) if how == 6 else column.type
    values = column.to_pylist()
    if values and how > 6:
        row = source.randrange(len(values))
        values[row] = _other(values[row], source)
    return table.set_column(at, name, _array(values, wanted, column))


def _other(value: Any, source: Random) -> Any:
    if isinstance(value, list):
        return source.choice((None, value[:-1], [*value[:-1], _other(value[-1] if value else 0, source)]))
    return source.choice((None, *INTEGERS, *FLOATS, *TEXTS))


def _array(values: list[Any], wanted: pa.DataType, column: pa.ChunkedArray[Any]) -> Any:
    """The values as that type, or as another that holds them."""
    for kind in (wanted, None, pa.float64(), pa.string()):
        try:
            return pa.array(values, type=kind)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            continue
    return column


# --------------------------------------------------------------------------------------------------------- predictions


def _run_predictions(suffix: str, value: bytes) -> str:
    path = _folder() / f"predictions{suffix}"
    path.write_bytes(value)
    try:
        found = read_predictions(path, ("tab", "ids[0]") if suffix == ".parquet" and len(value) % 2 else ())
        labels = found.labels()
        p = found.probabilities()
    except ValueError as error:
        return rejected("predictions", str(error), _REASONS)
    promised(((p >= 0) & (p <= 1)).all(), "a probability that is none was taken")
    promised(labels.dtype == np.bool_ and len(labels) == len(p), "labels that are none were taken")
    promised(found.logit is None or np.isfinite(found.logit).all(), "a logit that is not finite was taken")
    return TAKEN


_CSV = b"label,logit,p,tab\n1,-0.5,0.4,2\n0,0.25,0.6,1\n1,3.5,0.97,0\n"


def _csv_changed(value: bytes, source: Random) -> bytes:
    """Another cell, row, header, encoding or line end."""
    rows = [line.split(",") for line in value.decode("utf-8", "surrogateescape").split("\n")]
    for _ in range(source.randint(1, 3)):
        row = source.choice(rows)
        at = source.randrange(len(row))
        row[at] = source.choice((*TEXTS, *map(repr, FLOATS), *map(str, INTEGERS), f" {row[at]} ", f'"{row[at]}', "1,2"))
    text = source.choice(("\n", "\n", "\n", "\r\n", "\r")).join(",".join(row) for row in rows)
    encoding = source.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


@cache
def _npz() -> list[bytes]:
    out = io.BytesIO()
    np.savez(out, label=np.array([1, 0, 1]), logit=np.array([0.1, -2.0, 3.0]), p=np.array([0.5, 0.2, 0.9]))
    return [out.getvalue()]


def _npz_changed(value: bytes, source: Random) -> bytes:
    with np.load(io.BytesIO(value)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    out = io.BytesIO()
    (np.savez_compressed if source.randrange(2) else np.savez)(out, **{  # type: ignore[arg-type]
        name or "x": one for name, one in arrays_changed(arrays, source).items()
    })  # fmt: skip
    return out.getvalue()


@cache
def _tables() -> list[bytes]:
    out = io.BytesIO()
    columns = {"label": [1, 0, 1], "logit": [0.1, -2.0, 3.0], "p": [0.5, 0.2, 0.9], "tab": [1, 2, 3]}
    pq.write_table(pa.table({**columns, "ids": pa.array([[1, 2]] * 3, pa.list_(pa.uint64(), 2))}), out)
    return [out.getvalue()]


# ------------------------------------------------------------------------------------------------------------- dataset


@cache
def _dataset() -> Path:
    return write_folder(_folder() / "kuairand", random_rows(12, 2), gzipped=False) / "data"


def _files() -> Sequence[Path]:
    return sorted(_dataset().glob("*.csv"))


def _run_dataset(value: bytes) -> str:
    """The first byte says which of the three files it replaces, or that the log is gzipped."""
    which = value[:1]
    data = _folder() / "tried"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(_dataset(), data)
    log, users, videos = (data / path.name for path in _files())
    if which == b"3":
        log.unlink()
        log.with_name(f"{log.name}.gz").write_bytes(value[1:])
    else:
        {b"1": users, b"2": videos}.get(which, log).write_bytes(value[1:])
    try:
        scenario = KuaiRand(data)
        days = scenario.days()
    except DataError as error:
        return rejected("dataset", str(error), _REASONS)
    promised(days is not None, "no days")
    encoder = Encoder(load_spec("kuairand"))
    for request in list(scenario.requests(0, 2**62))[:20]:
        encoder.ids([request])
        for display in scenario.displays(request, [0]):
            promised(display.click_ms is None or display.click_ms >= request.ts_ms, "a click before its display")
    return TAKEN


@cache
def _dataset_files() -> list[bytes]:
    import gzip

    log, users, videos = (path.read_bytes() for path in _files())
    return [b"0" + log, b"1" + users, b"2" + videos, b"3" + gzip.compress(log)]


def _dataset_changed(value: bytes, source: Random) -> bytes:
    changed: Callable[[bytes, Random], bytes] = damaged if value[:1] == b"3" else _csv_changed
    return value[:1] + changed(value[1:], source)


TARGETS = [
    Target("archive", _run_archive, _archives, _parquet_changed),
    Target("predictions_csv", partial(_run_predictions, ".csv"), lambda: [_CSV], _csv_changed),
    Target("predictions_npz", partial(_run_predictions, ".npz"), _npz, _npz_changed),
    Target("predictions_parquet", partial(_run_predictions, ".parquet"), _tables, _parquet_changed),
    Target("kuairand", _run_dataset, _dataset_files, _dataset_changed),
]
