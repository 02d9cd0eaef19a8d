"""What one record may hold: size, rows, times. Beyond it, it is refused, if it can be before anything is decoded.

A record that cannot be read raises RecordError with a reason of the closed set ``malformed`` (neither msgpack nor
JSON), ``schema`` (wrong type, missing field, wrong length), ``spec`` (another feature spec), ``time`` (a time that no
event has). A single bad row inside a good batch does not: it is left out and named in `rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.records.columns import RecordError
from stream.records.wire import EventsRecord, ServedRecord

EARLIEST_MS = 946_684_800_000  # 2000-01-01: anything earlier is seconds, or a clock that was never set
LATEST_MS = 4_102_444_800_000  # 2100-01-01: anything later is microseconds
LAST_VERSION = 10**11  # of a model, a map, a line; that of snapshots, `learners.snapshots.manifest`
LAST_OFFSET = 2**62  # of a log
Why: TypeAlias = Callable[[Mapping[str, Any], int, int], tuple[str, str]]  # row, rows, index: reason and detail
_WHY_LATEST = "when the record came and what clocks may differ (MILLSTREAM_MAX_AHEAD_S)"
MAX_RECORD_BYTES = 8 << 20  # the greatest limit in the table of topics: no producer of ours writes more
MAX_JSON_BYTES = 64 << 10  # one event has some hundred bytes
MAX_RECORD_ROWS = 65_536  # the smallest row of any input fills the topic's limit before
UNREADABLE = b"\xc1"
"""Begins the value of a record that stands for a batch which could not be unpacked; the reason follows as text.

No msgpack and no JSON begins so: every decoder of such a record refuses it.
"""
FIRST_NO_JSON = 0x80  # a msgpack map begins there or above, JSON below


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One row left out of a batch; `payload` is its JSON."""

    reason: str
    detail: str
    payload: bytes


def check_watermark(watermark_ms: int) -> None:
    """Raise RecordError (``time``) unless the watermark is absent (0) or a time that an event can have."""
    if watermark_ms and not EARLIEST_MS <= watermark_ms < LATEST_MS:
        raise RecordError("time", f"watermark_ms={watermark_ms} is not between 2000 and 2100 in Unix milliseconds")


def check_ahead(name: str, at_ms: int, latest_ms: int) -> None:
    """Raise RecordError (``time``) for a time after the latest that a record of its time can have."""
    if at_ms > latest_ms:
        raise RecordError("time", f"{name}={at_ms} is later than {latest_ms}, {_WHY_LATEST}")


def decoded(decoder: Any, value: bytes, what: str) -> Any:
    """Return the record that a value is. Raises RecordError."""
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise RecordError("schema", f"not a record of {what}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError("malformed", f"neither read as a record of {what} nor as JSON: {error}") from error


def arrays_of(record: EventsRecord | ServedRecord) -> dict[str, Any]:
    """Return the columns of a record. Raises RecordError where its counts are impossible."""
    try:
        return record.arrays()
    except (ValueError, OverflowError) as error:  # counts beyond what an array can have
        if isinstance(error, RecordError):
            raise
        raise RecordError("schema", f"the record's counts are impossible: {error}") from error


def has_no_key_or_time(impression_id: NDArray[np.uint64], ts_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows have an id or a time that no event has, (B,)."""
    bad: NDArray[np.bool_] = (ts_ms < EARLIEST_MS) | (ts_ms >= LATEST_MS) | (impression_id == 0)
    return bad


def why_bad(row: Mapping[str, Any], rows: int, at: int) -> tuple[str, str]:
    """Return reason and detail of a bad row."""
    where = f"row {at} of {rows}: " if rows > 1 else ""
    if not EARLIEST_MS <= row["ts_ms"] < LATEST_MS:
        return "time", f"{where}ts_ms={row['ts_ms']} is not between 2000 and 2100 in Unix milliseconds"
    if not row["impression_id"]:
        return "schema", f"{where}impression_id is 0, which no served row has"
    return "schema", f"{where}value={row['value']} is not a finite number"


def why_ahead(latest_ms: int, row: Mapping[str, Any], rows: int, at: int) -> tuple[str, str]:
    """Return reason and detail of a row that is later than ``latest_ms``."""
    where = f"row {at} of {rows}: " if rows > 1 else ""
    return "time", f"{where}ts_ms={row['ts_ms']} is later than {latest_ms}, {_WHY_LATEST}"


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
    most, remedy = (MAX_JSON_BYTES, "one event") if json else (MAX_RECORD_BYTES, f"at most {MAX_RECORD_ROWS} rows")
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
    if rows > MAX_RECORD_ROWS:
        raise RecordError(
            "schema",
            f"the record has {rows} rows, larger than the {MAX_RECORD_ROWS} that it may have. Send them in parts.",
        )
