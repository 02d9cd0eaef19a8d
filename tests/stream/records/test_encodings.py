"""Events in an encoding that is not read: the dead letter says which."""

from __future__ import annotations

import gzip
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.records.columns import RecordError
from stream.records.encodings import foreign_encoding
from stream.records.events import decode_events, json_events
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS

JSON = json.dumps({"impression_id": "5", "ts_ms": 1_650_000_000_000, "user_key": "7"})
FOREIGN = {
    "UTF-8 with a byte order mark": JSON.encode("utf-8-sig"),
    "UTF-16": JSON.encode("utf-16"),
    "UTF-16 without a byte order mark": JSON.encode("utf-16-le"),
    "UTF-16 without a byte order mark ": JSON.encode("utf-16-be"),
    "UTF-32": JSON.encode("utf-32"),
    "UTF-32 without a byte order mark": JSON.encode("utf-32-be"),
    "compressed with gzip": gzip.compress(JSON.encode()),
    "compressed with zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    "compressed with lz4": b"\x04\x22\x4d\x18" + bytes(20),
    "a schema registry's header before JSON": b"\0\0\0\0\7" + JSON.encode(),
    "a schema registry's Avro or Protobuf": b"\0\0\0\0\7" + b"\x02\x10abc",
}


@pytest.mark.parametrize("content_type", [None, "application/json", "application/msgpack"])
@pytest.mark.parametrize("topic", [IMPRESSIONS, CLICKS, CONVERSIONS])
@pytest.mark.parametrize("encoding", FOREIGN)
def test_an_event_in_another_encoding_is_called_so(encoding: str, topic: str, content_type: str | None) -> None:
    """Not "expected object, got int"."""
    value = FOREIGN[encoding]
    with pytest.raises(RecordError, match=f"the record is {encoding.strip()}; send JSON in UTF-8"):
        decode_events(topic, value, content_type)
    assert json_events(topic, [value, JSON.encode()]) is None


def test_what_is_neither_keeps_its_reason() -> None:
    """Plain garbage, and a good event."""
    with pytest.raises(RecordError) as error:
        decode_events(CLICKS, b"\xc1\xc1")
    assert "encod" not in str(error.value)
    assert len(decode_events(CLICKS, JSON.encode())) == 1


@given(st.dictionaries(st.text(max_size=3), st.integers(-5, 5), max_size=20))
def test_no_json_object_and_no_msgpack_map_is_taken_for_foreign(value: dict[str, int]) -> None:
    """What can be read is never called otherwise."""
    assert foreign_encoding(json.dumps(value).encode()) == ""
    assert foreign_encoding(msgspec.msgpack.encode(value)) == ""
