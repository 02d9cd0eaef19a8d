"""From the bytes of an input topic to rows: columnar batches, and the JSON of single events for the public inputs.

A record that cannot be read raises RecordError with a reason of the closed set ``malformed`` (neither msgpack nor
JSON), ``schema`` (wrong type, missing field, wrong length), ``spec`` (another feature spec), ``time`` (a time that no
event has). A single bad row inside a good batch does not: it is left out and named in `rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec
import numpy as np
import orjson
from msgspec import Meta
from numpy.typing import NDArray

from stream.input_limits import FIRST_NO_JSON, check_rows, check_size
from stream.records import SCORES, EventsRecord, RecordError, ServedRecord
from stream.topics import CLICKS, CONVERSIONS, IMPRESSIONS

EARLIEST_MS = 946_684_800_000  # 2000-01-01: anything earlier is seconds, or a clock that was never set
LATEST_MS = 4_102_444_800_000  # 2100-01-01: anything later is microseconds
_U64_MAX = 2**64 - 1
EVENT_COLUMNS = ("impression_id", "ts_ms", "user_key", "position", "value")  # of `EventRows`
_BY_ROW = ("impression_id", "row_request", *SCORES, "ad_ids", "ad_dense")  # columns of `ServedRows`
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_Why: TypeAlias = Callable[[Mapping[str, Any], int, int], tuple[str, str]]  # row, rows, place: reason and detail
_WHY_LATEST = "the record's own time and what clocks may differ (MILLSTREAM_MAX_AHEAD_S)"
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
_served_decoder = msgspec.msgpack.Decoder(ServedRecord)


class SpecWidths(Protocol):
    """What the join needs of a feature spec: its hash, and the names (here only their number) of its columns."""

    @property
    def hash(self) -> str: ...  # noqa: D102
    @property
    def request_fields(self) -> Sized: ...  # noqa: D102
    @property
    def ad_fields(self) -> Sized: ...  # noqa: D102
    @property
    def request_dense(self) -> Sized: ...  # noqa: D102
    @property
    def ad_dense(self) -> Sized: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One row left out of a batch; `payload` is its JSON."""

    reason: str
    detail: str
    payload: bytes


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedRows:
    """B served rows of R requests; what belongs to a request is there once, ``row_request`` says whose a row is."""

    impression_id: NDArray[np.uint64]  # (B,)
    row_request: NDArray[np.uint32]  # (B,)
    logit: NDArray[np.float32]  # (B,)
    p: NDArray[np.float32]  # (B,)
    conversion_logit: NDArray[np.float32]  # (B,) NaN: the model has no such head
    conversion_p: NDArray[np.float32]  # (B,)
    propensity: NDArray[np.float32]  # (B,)
    ad_ids: NDArray[np.uint64]  # (B, ad fields)
    ad_dense: NDArray[np.float32]  # (B, ad dense inputs)
    ts_ms: NDArray[np.int64]  # (R,)
    user_key: NDArray[np.uint64]  # (R,)
    model_version: NDArray[np.int64]  # (R,)
    request_ids: NDArray[np.uint64]  # (R, request fields)
    request_dense: NDArray[np.float32]  # (R, request dense inputs)
    watermark_ms: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.impression_id)

    @classmethod
    def empty(cls, spec: SpecWidths) -> ServedRows:
        """Return no rows of a spec's columns."""
        widths = {
            "ad_ids": (len(spec.ad_fields),),
            "ad_dense": (len(spec.ad_dense),),
            "request_ids": (len(spec.request_fields),),
            "request_dense": (len(spec.request_dense),),
        }
        layout = {name: dtype for name, (dtype, _, _) in ServedRecord.LAYOUT.items()} | {"model_version": "<i8"}
        del layout["request_id"]
        columns: dict[str, Any] = {name: np.empty((0, *widths.get(name, ())), dtype) for name, dtype in layout.items()}
        return cls(**columns)

    @property
    def served_ms(self) -> NDArray[np.int64]:
        """When each row was served, (B,)."""
        served_ms: NDArray[np.int64] = self.ts_ms[self.row_request]
        return served_ms


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

    JSON and columnar records are told apart by the content type or else by the first byte: a msgpack map starts at
    0x80 or above, JSON below. Raises RecordError.
    """
    if not value:
        raise RecordError("malformed", "the record is empty; expected the JSON of an event or a columnar batch")
    check_size(value)
    if not is_json(value, content_type):
        return event_rows(topic, _decoded(_events_decoder, value, "events"))
    return _json_event(topic, value)


def json_events(topic: str, values: Sequence[bytes]) -> EventRows | None:
    """Return the events of JSON records of one event each, decoded together.

    None unless each of them is a sound event: `decode_events` of a record tells what is wrong with it.
    """
    lines = b"\n".join(values)
    if lines.count(b"\n") != len(values) - 1:
        return None  # a line must be a record, or two events in one could pass for two records
    try:
        events = _json_decoders[topic].decode_lines(lines)
        rows = _event_columns(events)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return None
    sound = len(events) == len(values) and not _bad_rows(rows.impression_id, rows.ts_ms).any()
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
        promise = _decoded(_watermark_decoder, value, "a watermark")
        check_watermark(promise.watermark_ms)
        return replace(EMPTY_EVENTS, watermark_ms=promise.watermark_ms)
    event: _Event = _decoded(_json_decoders[topic], value, topic)
    for name in ("impression_id", "user_key"):
        _check_u64(name, int(getattr(event, name)))
    found = {"impression_id": int(event.impression_id), "ts_ms": event.ts_ms}
    if not found["impression_id"] or not EARLIEST_MS <= event.ts_ms < LATEST_MS:
        raise RecordError(*_why(found, 1, 0))
    if not abs(worth := getattr(event, "value", 0.0)) <= _FLOAT32_MAX:
        raise RecordError("schema", f"value={worth} does not fit a 32-bit float")
    return _event_columns([event])


def event_rows(topic: str, record: EventsRecord) -> EventRows:
    """Return the rows of a columnar batch, bad ones left out. Raises RecordError."""
    check_watermark(record.watermark_ms)
    check_rows(record.rows)
    columns = _arrays(record)
    rows = EventRows(**columns, watermark_ms=record.watermark_ms)
    bad = _bad_rows(rows.impression_id, rows.ts_ms) | ~np.isfinite(rows.value)
    return _without_events(topic, rows, bad, _why) if bad.any() else rows


def events_until(topic: str, rows: EventRows, latest_ms: int) -> EventRows:
    """Return the rows without those of a later time, which some wrong clock gave them."""
    bad = rows.ts_ms > latest_ms
    return _without_events(topic, rows, bad, partial(_ahead, latest_ms)) if bad.any() else rows


def decode_served(value: bytes | None, spec: SpecWidths) -> ServedRows:
    """Return the rows of one served record. Raises RecordError."""
    if not value:
        raise RecordError("malformed", "the record is empty; expected a served batch")
    check_size(value)
    return served_rows(_decoded(_served_decoder, value, "served"), spec)


def served_rows(record: ServedRecord, spec: SpecWidths) -> ServedRows:
    """Return the rows of a served batch, bad ones left out. Raises RecordError."""
    check_watermark(record.watermark_ms)
    check_rows(max(record.rows, record.requests))
    if record.rows or record.requests:
        _check_spec(record, spec)
    columns = _arrays(record)
    request = columns["row_request"]
    if len(request) and int(request.max()) >= record.requests:
        raise RecordError("schema", f"row_request holds {int(request.max())}, but there are {record.requests} requests")
    del columns["request_id"]
    versions = np.full(record.requests, record.model_version, np.int64)
    rows = ServedRows(**columns, model_version=versions, watermark_ms=record.watermark_ms)
    bad = _bad_rows(rows.impression_id, rows.served_ms)
    return _without_served(rows, bad, _why) if bad.any() else rows


def served_until(rows: ServedRows, latest_ms: int) -> ServedRows:
    """Return the rows without those of a later time, which some wrong clock gave them."""
    if not (rows.ts_ms > latest_ms).any():
        return rows
    return _without_served(rows, rows.served_ms > latest_ms, partial(_ahead, latest_ms))


def check_watermark(watermark_ms: int) -> None:
    """Raise RecordError (``time``) unless the watermark is absent (0) or a time that an event can have."""
    if watermark_ms and not EARLIEST_MS <= watermark_ms < LATEST_MS:
        raise RecordError("time", f"watermark_ms={watermark_ms} is not between 2000 and 2100 in Unix milliseconds")


def check_ahead(name: str, at_ms: int, latest_ms: int) -> None:
    """Raise RecordError (``time``) for a time after the latest that a record of its time can tell."""
    if at_ms > latest_ms:
        raise RecordError("time", f"{name}={at_ms} is later than {latest_ms}, {_WHY_LATEST}")


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


def _decoded(decoder: Any, value: bytes, what: str) -> Any:
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise RecordError("schema", f"not a record of {what}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError("malformed", f"neither read as a record of {what} nor as JSON: {error}") from error


def _arrays(record: EventsRecord | ServedRecord) -> dict[str, Any]:
    try:
        return record.arrays()
    except (ValueError, OverflowError) as error:  # counts beyond what an array can have
        if isinstance(error, RecordError):
            raise
        raise RecordError("schema", f"the record's counts are impossible: {error}") from error


def _check_u64(name: str, number: int) -> None:
    if number > _U64_MAX:
        raise RecordError("schema", f"{name}={number} is larger than 2^64 - 1")


def _check_spec(record: ServedRecord, spec: SpecWidths) -> None:
    if record.spec_hash != spec.hash:
        raise RecordError(
            "spec",
            f"served under feature spec {record.spec_hash}, this worker joins {spec.hash}: the columns do not fit. "
            "Start serving and workers with one spec.",
        )
    found = (record.request_fields, record.ad_fields, record.request_dense_inputs, record.ad_dense_inputs)
    wanted = (len(spec.request_fields), len(spec.ad_fields), len(spec.request_dense), len(spec.ad_dense))
    if found != wanted:
        raise RecordError("schema", f"request and ad columns, ids then dense, are {found}, the spec has {wanted}")


def _bad_rows(impression_id: NDArray[np.uint64], ts_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
    bad: NDArray[np.bool_] = (ts_ms < EARLIEST_MS) | (ts_ms >= LATEST_MS) | (impression_id == 0)
    return bad


def _why(row: Mapping[str, Any], rows: int, at: int) -> tuple[str, str]:
    where = f"row {at} of {rows}: " if rows > 1 else ""
    if not EARLIEST_MS <= row["ts_ms"] < LATEST_MS:
        return "time", f"{where}ts_ms={row['ts_ms']} is not between 2000 and 2100 in Unix milliseconds"
    if not row["impression_id"]:
        return "schema", f"{where}impression_id is 0, which no served row has"
    return "schema", f"{where}value={row['value']} is not a finite number"


def _ahead(latest_ms: int, row: Mapping[str, Any], rows: int, at: int) -> tuple[str, str]:
    where = f"row {at} of {rows}: " if rows > 1 else ""
    return "time", f"{where}ts_ms={row['ts_ms']} is later than {latest_ms}, {_WHY_LATEST}"


def _without_events(topic: str, rows: EventRows, bad: NDArray[np.bool_], why: _Why) -> EventRows:
    columns = {name: getattr(rows, name) for name in EVENT_COLUMNS}
    rejected = list(rows.rejected)
    for at in np.flatnonzero(bad).tolist():
        row = {name: column[at].item() for name, column in columns.items()}
        rejected.append(RejectedRow(*why(row, len(rows), at), event_json(topic, **row)))
    kept: dict[str, Any] = {name: column[~bad] for name, column in columns.items()}
    return EventRows(**kept, watermark_ms=rows.watermark_ms, rejected=rejected)


def _without_served(rows: ServedRows, bad: NDArray[np.bool_], why: _Why) -> ServedRows:
    rejected = [*rows.rejected, *(_rejected_served(rows, at, why) for at in np.flatnonzero(bad).tolist())]
    kept: dict[str, Any] = {name: getattr(rows, name)[~bad] for name in _BY_ROW}
    return replace(rows, **kept, rejected=rejected)


def _rejected_served(rows: ServedRows, at: int, why: _Why) -> RejectedRow:
    request = int(rows.row_request[at])
    ts_ms, impression_id = int(rows.ts_ms[request]), int(rows.impression_id[at])
    payload = {
        "impression_id": str(impression_id),
        "ts_ms": ts_ms,
        "user_key": str(int(rows.user_key[request])),
        "model_version": int(rows.model_version[request]),
        **{name: float(getattr(rows, name)[at]) for name in SCORES},
        "ids": [*map(str, rows.request_ids[request].tolist()), *map(str, rows.ad_ids[at].tolist())],
        "dense": [*rows.request_dense[request].tolist(), *rows.ad_dense[at].tolist()],
    }
    reason, detail = why({"impression_id": impression_id, "ts_ms": ts_ms}, len(rows), at)
    return RejectedRow(reason, detail, orjson.dumps(payload))
