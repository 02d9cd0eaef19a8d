"""What a record is that is neither JSON in UTF-8 nor a msgpack map, by how it begins."""

from __future__ import annotations

_MARKS = (  # longer ones first
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xef\xbb\xbf", "UTF-8 with a byte order mark"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
)
_REGISTRY_HEADER_BYTES = 5
_JSON_STARTS = b'{["'


def foreign_encoding(value: bytes) -> str:
    """How a value seems to be encoded that could not be read; "" where it does not say."""
    for mark, encoding in _MARKS:
        if value.startswith(mark):
            return encoding
    for wide, encoding in ((4, "UTF-32 without a byte order mark"), (2, "UTF-16 without a byte order mark")):
        unit = value[:wide]
        if len(unit) == wide and unit.count(0) == wide - 1 and unit.strip(b"\0") in (b"{", b"["):
            return encoding
    if len(value) > _REGISTRY_HEADER_BYTES and value[0] == 0:
        after = value[_REGISTRY_HEADER_BYTES]
        return (
            "a schema registry's header before JSON"
            if after in _JSON_STARTS
            else "a schema registry's Avro or Protobuf"
        )
    return ""
