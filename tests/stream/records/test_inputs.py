"""Decoding of the inputs: what is accepted, and where everything else ends."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.records.columns import RecordError
from stream.records.events import decode_events
from stream.records.limits import EARLIEST_MS, LATEST_MS
from stream.records.served import decode_served
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS
from stream.records.wire import EventsRecord, ServedRecord

T0 = 1_650_000_000_000
EVENT: dict[str, Any] = {"impression_id": "18446744073709551615", "ts_ms": T0, "user_key": 7}


@dataclass(frozen=True)
class Spec:
    """Two request fields, one ad field, one request dense input, two ad dense inputs."""

    hash: str = "0123456789abcdef"
    request_fields: tuple[str, ...] = ("user", "tab")
    ad_fields: tuple[str, ...] = ("ad",)
    request_dense: tuple[str, ...] = ("gap",)
    ad_dense: tuple[str, ...] = ("ctr", "count")


def events(rows: int, **changes: Any) -> EventsRecord:
    """A batch of good events, with changes."""
    return EventsRecord.of(
        **{
            "rows": rows,
            "impression_id": np.arange(rows) + 1,
            "ts_ms": T0 + np.arange(rows),
            "user_key": np.arange(rows) + 10,
            "position": np.arange(rows),
            "value": np.zeros(rows),
        }
        | changes
    )


def served(**changes: Any) -> ServedRecord:
    """Two requests, the second with two ads, with changes."""
    return ServedRecord.of(
        **{
            "spec_hash": Spec().hash,
            "model_version": 9,
            "map_version": 1,
            "variant": "a",
            "requests": 2,
            "rows": 3,
            "request_fields": 2,
            "ad_fields": 1,
            "request_dense_inputs": 1,
            "ad_dense_inputs": 2,
            "request_id": [1, 2],
            "ts_ms": [T0, T0 + 5],
            "user_key": [70, 80],
            "request_ids": [[1, 2], [3, 4]],
            "request_dense": [[0.5], [0.25]],
            "row_request": [1, 0, 1],
            "impression_id": [11, 12, 13],
            "ad_ids": [[5], [6], [7]],
            "ad_dense": [[1, 2], [3, 4], [5, 6]],
            "logit": [0, 1, 2],
            "p": [0, 0, 1],
            "conversion_logit": [0, np.nan, 2],
            "conversion_p": [0.5, np.nan, 0.25],
            "propensity": [1, 1, 1],
            "watermark_ms": T0,
        }
        | changes
    )


def reason(topic: str, value: bytes | None, content_type: str | None = None) -> str:
    """The reason for which a public input's record is rejected."""
    with pytest.raises(RecordError) as error:
        decode_events(topic, value, content_type)
    return error.value.reason


def served_reason(record: ServedRecord) -> str:
    """The reason for which a served record is rejected."""
    with pytest.raises(RecordError) as error:
        decode_served(record.encode(), Spec())
    return error.value.reason


@pytest.mark.parametrize(
    ("topic", "extra", "column"), [(IMPRESSIONS, {"position": 3}, "position"), (CONVERSIONS, {"value": 2.5}, "value")]
)
@pytest.mark.parametrize("content_type", [None, "application/json", "Application/JSON; charset=utf-8"])
def test_json_event_is_one_row(topic: str, extra: dict[str, float], column: str, content_type: str | None) -> None:
    """Ids are decimal strings or integers; all 64 bits arrive."""
    rows = decode_events(topic, (" " + json.dumps(EVENT | extra)).encode(), content_type)
    assert rows.impression_id.tolist() == [2**64 - 1]
    assert (rows.ts_ms.tolist(), rows.user_key.tolist()) == ([T0], [7])
    assert getattr(rows, column).tolist() == list(extra.values())
    assert rows.watermark_ms == 0


def test_json_watermark_is_a_promise_without_rows() -> None:
    """Every public input takes it."""
    rows = decode_events(CLICKS, b'{"watermark_ms": 1650000000000}')
    assert (len(rows), rows.watermark_ms) == (0, T0)


@pytest.mark.parametrize("content_type", [None, "application/msgpack"])
def test_columnar_batch_keeps_its_rows(content_type: str | None) -> None:
    """The columns are the record's, in order."""
    rows = decode_events(IMPRESSIONS, events(3, watermark_ms=T0).encode(), content_type)
    assert rows.impression_id.tolist() == [1, 2, 3]
    assert (rows.position.tolist(), rows.watermark_ms, rows.rejected) == ([0, 1, 2], T0, [])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "malformed"),
        (None, "malformed"),
        (b"hello", "malformed"),
        (b'{"impression_id": ', "malformed"),
        (b"\xc1\xfe\x00", "malformed"),
        (b"\xff\xfe\x00", "schema"),
        (b"\x81", "malformed"),
        (b'{"impression_id": "\xff"}', "malformed"),
        (b"[]", "schema"),
        (b"{}", "schema"),
        (b"\x80", "schema"),
        (b'{"watermark_ms": "soon"}', "schema"),
        (b'{"watermark_ms": 12}', "time"),
        (b'{"watermark_ms": -5}', "time"),
    ],
)
def test_unreadable_records_have_a_reason(value: bytes | None, expected: str) -> None:
    """Not msgpack nor JSON is malformed; readable but not ours is a schema error."""
    assert reason(CLICKS, value) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ts_ms": "now"}, "schema"),
        ({"ts_ms": 1.5}, "schema"),
        ({"ts_ms": None}, "schema"),
        ({"impression_id": "0x1"}, "schema"),
        ({"impression_id": -1}, "schema"),
        ({"impression_id": 0}, "schema"),
        ({"impression_id": str(2**64)}, "schema"),
        ({"impression_id": 2**64}, "schema"),
        ({"user_key": 2**70}, "schema"),
        ({"colour": "red"}, "schema"),
        ({"position": 2**40}, "schema"),
        ({"ts_ms": EARLIEST_MS - 1}, "time"),
        ({"ts_ms": LATEST_MS}, "time"),
        ({"ts_ms": 2**80}, "time"),
    ],
)
def test_wrong_json_events_have_a_reason(change: dict[str, Any], expected: str) -> None:
    """A wrong type, an id that is none, an unknown field and an impossible time are told apart."""
    assert reason(IMPRESSIONS, json.dumps(EVENT | change).encode()) == expected


@pytest.mark.parametrize("value", ["1e400", "NaN", "1e39", '"1"'])
def test_json_value_must_be_a_finite_float(value: str) -> None:
    """A value that a 32-bit float cannot hold is refused, not rounded to infinity."""
    text = json.dumps(EVENT)[:-1] + f', "value": {value}}}'
    assert reason(CONVERSIONS, text.encode()) in {"schema", "malformed"}


def test_missing_field_and_field_of_another_topic_are_schema_errors() -> None:
    """A click has no position."""
    assert reason(CLICKS, json.dumps({"impression_id": 1, "ts_ms": T0}).encode()) == "schema"
    assert reason(CLICKS, json.dumps(EVENT | {"position": 1}).encode()) == "schema"


def test_foreign_content_type_and_record_are_refused() -> None:
    """The content type wins over the first byte; a served record is no batch of events."""
    assert reason(CLICKS, json.dumps(EVENT).encode(), "text/csv") == "malformed"
    assert reason(CLICKS, json.dumps(EVENT).encode(), "application/msgpack") in {"malformed", "schema"}
    assert reason(CLICKS, served().encode()) == "schema"


def test_bad_rows_of_a_batch_are_left_out_alone() -> None:
    """The others stay; the payload is the row's JSON, fit to be sent again."""
    batch = events(4, ts_ms=[T0, 5, T0, LATEST_MS], impression_id=[0, 2, 3, 4])
    rows = decode_events(IMPRESSIONS, batch.encode())
    assert rows.impression_id.tolist() == [3]
    assert [one.reason for one in rows.rejected] == ["schema", "time", "time"]
    assert json.loads(rows.rejected[1].payload) == {"impression_id": "2", "ts_ms": 5, "user_key": "11", "position": 1}
    rows = decode_events(CONVERSIONS, events(2, value=[np.nan, 1]).encode())
    assert (rows.value.tolist(), [one.reason for one in rows.rejected]) == ([1], ["schema"])


@pytest.mark.parametrize("rows", [1, 3, -2, 2**63])
def test_batch_of_broken_lengths_is_rejected_whole(rows: int) -> None:
    """Rows that do not fit their columns cannot be trusted at all."""
    assert reason(CLICKS, msgspec.structs.replace(events(2), rows=rows).encode()) == "schema"


@given(value=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_bytes_decode_or_raise_a_record_error(value: bytes) -> None:
    """No input can raise anything else, so none can stop a partition."""
    for topic in (IMPRESSIONS, CLICKS, CONVERSIONS):
        try:
            decode_events(topic, value)
        except RecordError as error:
            assert error.reason in {"malformed", "schema", "time"}  # noqa: PT017  # both ways are right
    with pytest.raises(RecordError):
        decode_served(value, Spec())


@given(cut=st.integers(0, 2**16), byte=st.integers(0, 255))
def test_damaged_records_decode_or_raise_a_record_error(cut: int, byte: int) -> None:
    """One wrong byte anywhere in a record raises nothing but RecordError."""
    for value, decode in (
        (bytearray(events(2).encode()), lambda raw: decode_events(CLICKS, raw)),
        (bytearray(served().encode()), lambda raw: decode_served(raw, Spec())),
    ):
        value[cut % len(value)] = byte
        try:
            decode(bytes(value))
        except RecordError as error:
            assert error.detail  # noqa: PT017  # both ways are right


def test_served_rows_carry_their_request() -> None:
    """Request columns are there once; each row names its request."""
    rows = decode_served(served().encode(), Spec())
    assert rows.watermark_ms == T0
    assert rows.impression_id.tolist() == [11, 12, 13]
    assert rows.user_key[rows.row_request].tolist() == [80, 70, 80]
    assert rows.served_ms.tolist() == [T0 + 5, T0, T0 + 5]
    assert rows.request_ids[rows.row_request].tolist() == [[3, 4], [1, 2], [3, 4]]
    assert rows.ad_ids.tolist() == [[5], [6], [7]]
    assert rows.request_dense[rows.row_request].tolist() == [[0.25], [0.5], [0.25]]
    assert rows.ad_dense.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert rows.logit.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(rows.conversion_logit, np.array([0, np.nan, 2], np.float32))
    np.testing.assert_array_equal(rows.conversion_p, np.array([0.5, np.nan, 0.25], np.float32))
    assert set(rows.model_version.tolist()) == {9}


def test_served_heartbeat_has_no_rows() -> None:
    """An empty record only carries its watermark, whatever its widths."""
    nothing: list[int] = []
    columns = dict.fromkeys(ServedRecord.LAYOUT, nothing)
    rows = decode_served(served(requests=0, rows=0, request_fields=0, **columns).encode(), Spec())
    assert (len(rows), rows.watermark_ms) == (0, T0)


def test_served_under_another_spec_is_rejected_with_both_hashes() -> None:
    """Columns of another feature spec would be learned as something that they are not."""
    other = replace(Spec(), hash="fedcba9876543210")
    with pytest.raises(RecordError, match=r"0123456789abcdef.*fedcba9876543210") as error:
        decode_served(served().encode(), other)
    assert error.value.reason == "spec"


@pytest.mark.parametrize(
    "change",
    [
        {"row_request": [0, 1, 2]},
        {"request_fields": 1, "ad_fields": 2},
        {"logit": [0, 1]},
        {"request_fields": 2**62},
        {"rows": 2**62},
    ],
)
def test_served_of_broken_shape_is_rejected_whole(change: dict[str, Any]) -> None:
    """A row of no request, other widths than the spec's, a short column."""
    assert served_reason(served(**change)) == "schema"


def test_bad_served_rows_are_left_out_alone() -> None:
    """A request at an impossible time takes its rows with it; the others stay."""
    rows = decode_served(served(ts_ms=[T0, 7], impression_id=[11, 0, 13]).encode(), Spec())
    assert len(rows) == 0
    assert [one.reason for one in rows.rejected] == ["time", "schema", "time"]
    rows = decode_served(served(ts_ms=[7, T0]).encode(), Spec())
    assert rows.impression_id.tolist() == [11, 13]
    assert json.loads(rows.rejected[0].payload)["ids"] == ["1", "2", "6"]
