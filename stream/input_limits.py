"""What one record may hold at most: beyond it, it is refused before anything of it is decoded."""

from __future__ import annotations

from stream.records import RecordError

MOST_RECORD_BYTES = 8 << 20  # the greatest limit in the table of topics: no producer of ours writes more
MOST_JSON_BYTES = 64 << 10  # one event has some hundred bytes
MOST_ROWS = 65_536  # of one record; the smallest row of any input fills the topic's limit before
UNREADABLE = b"\xc1"
"""Begins the value of a record that stands for a batch which could not be unpacked; the reason follows as text.

No msgpack and no JSON begins so: whoever decodes such a record refuses it.
"""
FIRST_NO_JSON = 0x80  # a msgpack map begins there or above, JSON below


def unreadable(reason: str) -> bytes:
    """Return the value of a record that stands for a batch which could not be unpacked."""
    return UNREADABLE + reason.encode()


def check_size(value: bytes) -> None:
    """Refuse a record that is larger than any sound one, or that stands for an unreadable batch.

    Raises
    ------
    RecordError
        ``malformed``.
    """
    if value[:1] == UNREADABLE:
        raise RecordError("malformed", value[1:].decode(errors="replace") or "0xC1 begins neither msgpack nor JSON")
    json = value[:1] != b"" and value[0] < FIRST_NO_JSON
    most, remedy = (MOST_JSON_BYTES, "one event") if json else (MOST_RECORD_BYTES, f"at most {MOST_ROWS} rows")
    if len(value) > most:
        raise RecordError(
            "malformed",
            f"the record has {len(value)} bytes, larger than the {most} that {'JSON' if json else 'a batch'} may have: "
            f"it was not decoded. Send {remedy} a record.",
        )


def check_rows(rows: int) -> None:
    """Refuse a batch of more rows than one record may hold.

    Raises
    ------
    RecordError
        ``schema``.
    """
    if rows > MOST_ROWS:
        raise RecordError(
            "schema", f"the record has {rows} rows, larger than the {MOST_ROWS} that it may have. Send them in parts."
        )
