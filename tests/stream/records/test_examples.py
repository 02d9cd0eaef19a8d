"""Example rows and their record."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from learners.examples.kinds import CLICK
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows, concat
from stream.records.examples_codec import SettledLogError, decode_examples, refuse_settled
from stream.records.schemas import schemas
from stream.records.topics import CLICKS, CONVERSIONS, EXAMPLES, IMPRESSIONS
from stream.records.wire import ExamplesRecord


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


SPEC = SimpleNamespace(hash="abc", id_columns=3, dense_inputs=2)


def test_a_record_is_decoded_with_its_watermark() -> None:
    """Under its own spec; another one's is refused."""
    value = _rows(2).to_record("abc", 5).encode()
    rows, watermark_ms = decode_examples(value, SPEC)
    assert _equal(rows, _rows(2))
    assert watermark_ms == 5
    with pytest.raises(RecordError, match="feature spec abc, here runs other") as refused:
        decode_examples(value, SimpleNamespace(hash="other", id_columns=3, dense_inputs=2))
    assert refused.value.reason == "spec"


def test_columns_of_odd_length_are_refused() -> None:
    """A record does not fit itself."""
    short = msgspec.structs.replace(_rows(1).to_record("abc", 5), ts_ms=b"\0")
    with pytest.raises(RecordError, match="ts_ms holds 1 bytes"):
        decode_examples(short.encode(), SPEC)


def test_a_record_of_labelled_examples_is_told_apart() -> None:
    """From one that is damaged: the reader must stop, and say what to do."""
    record = msgspec.msgpack.decode(_rows(1).to_record("abc", 5).encode())
    for columns, reason in (({"label": b"\1"}, "settled"), ({"colour": b"\1"}, "schema")):
        with pytest.raises(RecordError) as refused:
            decode_examples(msgspec.msgpack.encode({**record, **columns}), SPEC)
        assert refused.value.reason == reason
    with pytest.raises(SettledLogError, match=r"ads.examples.v1\[3\] 17 is .*delete the topic"):
        refuse_settled(EXAMPLES, 3, 17)


def test_an_event_of_the_same_impressions_keeps_their_columns() -> None:
    """Kind and what was given change, the served columns do not."""
    rows = _rows(3)
    clicks = rows.with_event(CLICK, delay_ms=np.arange(3))
    assert clicks.kind.tolist() == [CLICK] * 3
    assert clicks.delay_ms.tolist() == [0, 1, 2]
    same = rows.columns().keys() - {"kind", "delay_ms"}
    assert all(getattr(clicks, name) is getattr(rows, name) for name in same)
