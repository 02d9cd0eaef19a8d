"""Records between wire and memory."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stream.records.columns import RecordError
from stream.records.wire import EventsRecord


def _record(rows: int) -> EventsRecord:
    return EventsRecord.of(
        rows=rows,
        impression_id=np.arange(rows),
        ts_ms=np.arange(rows),
        user_key=np.arange(rows),
        position=np.arange(rows),
        value=np.arange(rows),
    )


@given(
    ids=hnp.arrays(np.uint64, 5),
    ts_ms=hnp.arrays(np.int64, 5),
    position=hnp.arrays(np.int32, 5),
    value=hnp.arrays(np.float32, 5),
    watermark_ms=st.integers(0, 2**62),
)
def test_wire_round_trip_is_exact(
    ids: np.ndarray, ts_ms: np.ndarray, position: np.ndarray, value: np.ndarray, watermark_ms: int
) -> None:
    """What comes out of the msgpack bytes is bit for bit what went in."""
    columns = {"impression_id": ids, "ts_ms": ts_ms, "user_key": ids, "position": position, "value": value}
    record = EventsRecord.of(rows=5, watermark_ms=watermark_ms, **columns)
    back = msgspec.msgpack.decode(record.encode(), type=EventsRecord)
    assert back.watermark_ms == watermark_ms
    for name, column in back.arrays().items():
        assert column.dtype == columns[name].dtype
        assert column.tobytes() == columns[name].tobytes()


@pytest.mark.parametrize("rows", [0, 2, 4, -1, 2**63, 2**64 - 1])
def test_counts_that_do_not_fit_are_a_schema_error(rows: int) -> None:
    """A lying row count never reaches an array."""
    with pytest.raises(RecordError, match="impression_id holds 24 bytes") as error:
        msgspec.structs.replace(_record(3), rows=rows).arrays()
    assert error.value.reason == "schema"


def test_arrays_are_read_only_views() -> None:
    """Nobody changes a record that others read."""
    with pytest.raises(ValueError, match="read-only"):
        _record(3).arrays()["ts_ms"][0] = 1
