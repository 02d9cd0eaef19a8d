"""Example rows and their record."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from stream.examples import Displays, ExampleRows, concat
from stream.examples_log import decode_record
from stream.records import ExamplesRecord, RecordError
from stream.schemas import schemas
from stream.topics import CLICKS, CONVERSIONS, EXAMPLES, IMPRESSIONS


def _rows(n: int, seed: int = 0) -> ExampleRows:
    rng = np.random.default_rng(seed)
    widths = {"fields": (3,), "dense_inputs": (2,), "": ()}
    return ExampleRows(
        **{
            name: rng.integers(0, 200, (n, *widths[width])).astype(dtype)
            for name, (dtype, _, width) in ExamplesRecord.LAYOUT.items()
        }
    )


def _equal(a: ExampleRows, b: ExampleRows) -> bool:
    return all((column == b.columns()[name]).all() and len(a) == len(b) for name, column in a.columns().items())


@pytest.mark.parametrize("n", [0, 1, 7])
def test_record_round_trip_is_exact(n: int) -> None:
    """Rows survive the wire, with their spec and watermark."""
    record = msgspec.msgpack.decode(_rows(n).to_record("abc", 5).encode(), type=ExamplesRecord)
    assert (record.spec_hash, record.watermark_ms, record.rows) == ("abc", 5, n)
    assert _equal(ExampleRows.from_record(record), _rows(n))


def test_concat_undoes_take() -> None:
    """Rows cut apart and put together again are the same rows, whatever chooses them."""
    rows = _rows(9)
    assert _equal(concat([rows.take(slice(0, 4)), rows.take(np.arange(4, 9))]), rows)
    assert rows.take(rows.ts_ms > 100).ts_ms.tolist() == [ts for ts in rows.ts_ms.tolist() if ts > 100]
    assert _equal(concat([ExampleRows.empty(3, 2), rows]), rows)


def test_concat_of_nothing_is_refused() -> None:
    """The widths would be a guess."""
    with pytest.raises(ValueError, match="empty"):
        concat([])


def test_learner_rows_are_the_ids_and_dense_inputs() -> None:
    """A learner reads the example's own arrays."""
    rows = _rows(2)
    assert rows.rows().ids is rows.ids
    assert rows.rows().dense is rows.dense


def test_every_schema_is_valid_and_describes_its_fields() -> None:
    """The schemas are JSON Schema, one for each topic and one for each JSON event."""
    found = schemas()
    for schema in found.values():
        Draft202012Validator.check_schema(schema)
    record = found[EXAMPLES]["$defs"]["ExamplesRecord"]["properties"]
    assert set(ExamplesRecord.LAYOUT) < set(record)
    event = {"impression_id": "1", "ts_ms": 2, "user_key": 3}
    for topic in (IMPRESSIONS, CLICKS, CONVERSIONS):
        validator = Draft202012Validator(found[f"{topic} json"])
        assert validator.is_valid(event)
        assert not validator.is_valid(event | {"ts_ms": "soon"})
        assert not validator.is_valid(event | {"colour": "red"})


def test_displays_travel_with_the_examples() -> None:
    """They come back as they were; a record without any says so."""
    spec = SimpleNamespace(hash="abc", id_columns=3, dense_inputs=2)
    shown = Displays(np.array([5, 6], np.uint64), np.array([7, 8], np.uint64), np.array([9, 10]))
    found = decode_record(_rows(2).to_record("abc", 5, shown).encode(), spec)
    assert found.displays is not None
    assert [column.tolist() for column in found.displays] == [[5, 6], [7, 8], [9, 10]]
    assert (len(found.rows), found.watermark_ms) == (2, 5)
    assert decode_record(_rows(1).to_record("abc", 5).encode(), spec).displays is None


def test_displays_of_odd_length_are_refused() -> None:
    """As any column is."""
    spec = SimpleNamespace(hash="abc", id_columns=3, dense_inputs=2)
    columns = np.ones(1, np.uint64), np.ones(1, np.uint64), np.ones(1, np.int64)
    record = _rows(1).to_record("abc", 5, Displays(*columns))
    assert record.displays is not None
    short = msgspec.structs.replace(record, displays=msgspec.structs.replace(record.displays, ts_ms=b"\0"))
    with pytest.raises(RecordError, match="ts_ms holds 1 bytes"):
        decode_record(short.encode(), spec)
