"""From the bytes of a public input to rows: columnar batches, and the JSON of single events.

Raises RecordError with the reasons of `stream.records.limits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
import orjson
from msgspec import Meta
from numpy.typing import NDArray

from stream.records.columns import RecordError
from stream.records.encodings import foreign_encoding
from stream.records.limits import (
    EARLIEST_MS,
    FIRST_NO_JSON,
    LATEST_MS,
    RejectedRow,
    Why,
    arrays_of,
    check_rows,
    check_size,
    check_watermark,
    decoded,
    has_no_key_or_time,
    why_ahead,
    why_bad,
)
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS
from stream.records.wire import EventsRecord

_U64_MAX = 2**64 - 1
EVENT_COLUMNS = ("impression_id", "ts_ms", "user_key", "position", "value")  # fields of `EventRows`
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_JSON_TYPES = {"application/json"}
_COLUMNAR_TYPES = {"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"}
U64 = Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern="^[0-9]{1,20}$")]
"""A 64-bit id: a decimal string, since many JSON readers lose the digits of large integers, or an integer."""


class ImpressionEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ad of this impression was displayed at ``ts_ms`` (Unix milliseconds), ``position`` counting from 0."""

    impression_id: U64
    ts_ms: int
    user_key: U64
    position: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0


class ClickEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ad of this impression was clicked at ``ts_ms`` (Unix milliseconds)."""

    impression_id: U64
    ts_ms: int
    user_key: U64


class ConversionEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The click on this impression led to something of worth ``value`` at ``ts_ms`` (Unix milliseconds)."""

    impression_id: U64
    ts_ms: int
    user_key: U64
    value: float = 0.0


class Watermark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A promise: no event earlier than ``watermark_ms`` (Unix milliseconds) will follow on this partition."""

    watermark_ms: int


_Event: TypeAlias = ImpressionEvent | ClickEvent | ConversionEvent
JSON_EVENTS: dict[str, type[_Event]] = {
    IMPRESSIONS: ImpressionEvent,
    CLICKS: ClickEvent,
    CONVERSIONS: ConversionEvent,
}
_json_decoders = {topic: msgspec.json.Decoder(event) for topic, event in JSON_EVENTS.items()}
_watermark_decoder = msgspec.json.Decoder(Watermark)
_events_decoder = msgspec.msgpack.Decoder(EventsRecord)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EventRows:
    """B events of one public input, and the watermark that came with them (0: none)."""

    impression_id: NDArray[np.uint64]  # (B,)
    ts_ms: NDArray[np.int64]  # (B,)
    user_key: NDArray[np.uint64]  # (B,)
    position: NDArray[np.int32]  # (B,)
    value: NDArray[np.float32]  # (B,)
    watermark_ms: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.impression_id)


def event_json(topic: str, impression_id: int, ts_ms: int, user_key: int, position: int, value: float) -> bytes:
    """Return the JSON of one event, fit to be sent to `topic` again."""
    event: dict[str, Any] = {"impression_id": str(impression_id), "ts_ms": ts_ms, "user_key": str(user_key)}
    if topic == IMPRESSIONS:
        event["position"] = position
    elif topic == CONVERSIONS:
        event["value"] = value
    return orjson.dumps(event)


def decode_events(topic: str, value: bytes | None, content_type: str | None = None) -> EventRows:
    """Return the rows of one record of a public input (`topic` without its prefix).

    JSON and columnar records are distinguished by the content type or else by the first byte: a msgpack map starts at
    0x80 or above, JSON below. Raises RecordError.
    """
    if not value:
        raise RecordError("malformed", "the record is empty; expected the JSON of an event or a columnar batch")
    check_size(value)
    try:
        if not is_json(value, content_type):
            return event_rows(topic, decoded(_events_decoder, value, "events"))
        return _json_event(topic, value)
    except RecordError as error:
        if not (encoding := foreign_encoding(value)):
            raise
        raise RecordError(
            error.reason, f"the record is {encoding}; send JSON in UTF-8 without a mark, or a msgpack batch, as it is"
        ) from error


def json_events(topic: str, values: Sequence[bytes]) -> EventRows | None:
    """Return the events of JSON records of one event each, decoded together.

    None unless each of them is a sound event: `decode_events` of a record says what is wrong with it.
    """
    lines = b"\n".join(values)
    if lines.count(b"\n") != len(values) - 1:
        return None  # a line must be a record, or two events in one could pass for two records
    try:
        events = _json_decoders[topic].decode_lines(lines)
        rows = _event_columns(events)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return None
    sound = len(events) == len(values) and not has_no_key_or_time(rows.impression_id, rows.ts_ms).any()
    return rows if sound and np.isfinite(rows.value).all() else None


def _event_columns(events: Sequence[_Event]) -> EventRows:
    """Raise OverflowError where a number does not fit its column."""
    value = np.array([getattr(event, "value", 0.0) for event in events], np.float64)
    if (np.abs(value) > _FLOAT32_MAX).any():
        raise OverflowError
    return EventRows(
        impression_id=np.array([int(event.impression_id) for event in events], np.uint64),
        ts_ms=np.array([event.ts_ms for event in events], np.int64),
        user_key=np.array([int(event.user_key) for event in events], np.uint64),
        position=np.array([getattr(event, "position", 0) for event in events], np.int32),
        value=value.astype(np.float32),
    )


EMPTY_EVENTS = _event_columns([])


def _json_event(topic: str, value: bytes) -> EventRows:
    """Return the one event, or the promise, of a JSON record. Raises RecordError."""
    if b'"watermark_ms"' in value:
        promise = decoded(_watermark_decoder, value, "a watermark")
        check_watermark(promise.watermark_ms)
        return replace(EMPTY_EVENTS, watermark_ms=promise.watermark_ms)
    event: _Event = decoded(_json_decoders[topic], value, topic)
    for name in ("impression_id", "user_key"):
        _check_u64(name, int(getattr(event, name)))
    found = {"impression_id": int(event.impression_id), "ts_ms": event.ts_ms}
    if not found["impression_id"] or not EARLIEST_MS <= event.ts_ms < LATEST_MS:
        raise RecordError(*why_bad(found, 1, 0))
    if not abs(worth := getattr(event, "value", 0.0)) <= _FLOAT32_MAX:
        raise RecordError("schema", f"value={worth} does not fit a 32-bit float")
    return _event_columns([event])


def event_rows(topic: str, record: EventsRecord) -> EventRows:
    """Return the rows of a columnar batch, bad ones left out. Raises RecordError."""
    check_watermark(record.watermark_ms)
    check_rows(record.rows)
    columns = arrays_of(record)
    rows = EventRows(**columns, watermark_ms=record.watermark_ms)
    bad = has_no_key_or_time(rows.impression_id, rows.ts_ms) | ~np.isfinite(rows.value)
    return _without_events(topic, rows, bad, why_bad) if bad.any() else rows


def events_until(topic: str, rows: EventRows, latest_ms: int) -> EventRows:
    """Return the rows without those of a later time, which some wrong clock gave them."""
    bad = rows.ts_ms > latest_ms
    return _without_events(topic, rows, bad, partial(why_ahead, latest_ms)) if bad.any() else rows


def is_json(value: bytes, content_type: str | None) -> bool:
    """Return whether a record's value is JSON, else it is columnar. Raises RecordError for another content type."""
    if content_type is None:
        return value[0] < FIRST_NO_JSON
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in _JSON_TYPES:
        return True
    if media_type in _COLUMNAR_TYPES:
        return False
    raise RecordError("malformed", f"content type {content_type!r} is neither application/json nor application/msgpack")


def _check_u64(name: str, number: int) -> None:
    if number > _U64_MAX:
        raise RecordError("schema", f"{name}={number} is larger than 2^64 - 1")


def _without_events(topic: str, rows: EventRows, bad: NDArray[np.bool_], why: Why) -> EventRows:
    columns = {name: getattr(rows, name) for name in EVENT_COLUMNS}
    rejected = list(rows.rejected)
    for at in np.flatnonzero(bad).tolist():
        row = {name: column[at].item() for name, column in columns.items()}
        rejected.append(RejectedRow(*why(row, len(rows), at), event_json(topic, **row)))
    kept: dict[str, Any] = {name: column[~bad] for name, column in columns.items()}
    return EventRows(**kept, watermark_ms=rows.watermark_ms, rejected=rejected)
