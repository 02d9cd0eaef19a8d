"""Many records of one input, decoded together: what a step of the join takes in at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.inbox import InputRecord
from stream.input_limits import check_size
from stream.inputs import (
    EventRows,
    JsonEvent,
    Promise,
    ServedRows,
    SpecWidths,
    check_ahead,
    decode_events,
    decode_served,
    event_columns,
    events_until,
    is_json,
    json_event,
    served_until,
)
from stream.join_output import Records, Reject
from stream.records import RecordError

_BY_REQUEST = ("ts_ms", "user_key", "model_version", "request_ids", "request_dense")
_BY_ROW = ("impression_id", "logit", "p", "propensity", "ad_ids", "ad_dense")


class EventBatch(NamedTuple):
    """The good rows of M records of a public input. Bad rows and records are rejects; they have no rows."""

    rows: EventRows
    records: Records
    rejects: list[Reject]


class ServedBatch(NamedTuple):
    """The same of the served topic."""

    rows: ServedRows
    records: Records
    rejects: list[Reject]


def events_batch(topic: str, records: Sequence[InputRecord], max_ahead_ms: int) -> EventBatch:
    """Decode records of a public input; an event later than its record by more than ``max_ahead_ms`` is a reject."""
    found = _Found(records)
    parts: list[EventRows] = []
    single: list[JsonEvent] = []
    for at, record in enumerate(records):
        latest_ms = record.produced_ms + max_ahead_ms
        try:
            if (event := _single(topic, record)) is not None:
                found.note_single(at, event, latest_ms)
                if isinstance(event, JsonEvent):
                    single.append(event)
                continue
            rows = events_until(topic, decode_events(topic, record.value, record.content_type), latest_ms)
            found.note(at, rows, latest_ms)
        except RecordError as error:
            found.reject(record, error)
            continue
        if single:
            parts.append(event_columns(single))
            single = []
        parts.append(rows)
    parts.append(event_columns(single))
    columns = _joined(parts, JsonEvent._fields)
    return EventBatch(EventRows(**columns), found.records(), found.rejects)


def served_batch(records: Sequence[InputRecord], spec: SpecWidths, max_ahead_ms: int) -> ServedBatch:
    """Decode records of the served topic."""
    found = _Found(records)
    parts = [ServedRows.empty(spec)]
    for at, record in enumerate(records):
        latest_ms = record.produced_ms + max_ahead_ms
        try:
            rows = served_until(decode_served(record.value, spec), latest_ms)
            found.note(at, rows, latest_ms)
        except RecordError as error:
            found.reject(record, error)
            continue
        if len(rows):
            parts.append(rows)
    columns = _joined(parts, (*_BY_ROW, *_BY_REQUEST))
    row_request = np.concatenate(list(_requests(parts)))
    return ServedBatch(ServedRows(**columns, row_request=row_request), found.records(), found.rejects)


class _Found:
    """What was found in each of M records."""

    def __init__(self, records: Sequence[InputRecord]) -> None:
        self.rejects: list[Reject] = []
        self._records = records
        self._rows = [0] * len(records)
        self._promises = [0] * len(records)

    def note(self, at: int, rows: EventRows | ServedRows, latest_ms: int) -> None:
        """A batch of rows. Raises RecordError for a promise that is too far ahead."""
        record = self._records[at]
        self._promise(at, rows.watermark_ms, latest_ms)
        self._rows[at] = len(rows)
        self.rejects += [Reject(record.topic, record.offset, *astuple(one)) for one in rows.rejected]

    def note_single(self, at: int, event: JsonEvent | Promise, latest_ms: int) -> None:
        """One event, or a promise. Raises RecordError when it is too far ahead."""
        if isinstance(event, Promise):
            self._promise(at, event.watermark_ms, latest_ms)
        else:
            check_ahead("ts_ms", event.ts_ms, latest_ms)
            self._rows[at] = 1

    def reject(self, record: InputRecord, error: RecordError) -> None:
        """A record that cannot be read."""
        self.rejects.append(Reject(record.topic, record.offset, error.reason, error.detail, record.value or b""))

    def records(self) -> Records:
        """Where the rows stood."""
        offsets, produced_ms = [one.offset for one in self._records], [one.produced_ms for one in self._records]
        return Records(*(np.array(column, np.int64) for column in (offsets, self._rows, produced_ms, self._promises)))

    def _promise(self, at: int, watermark_ms: int, latest_ms: int) -> None:
        check_ahead("watermark_ms", watermark_ms, latest_ms)
        self._promises[at] = watermark_ms


def _joined(parts: Sequence[EventRows] | Sequence[ServedRows], names: Sequence[str]) -> dict[str, Any]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def _single(topic: str, record: InputRecord) -> JsonEvent | Promise | None:
    """The event of a JSON record, None for a columnar one."""
    if not record.value or not is_json(record.value, record.content_type):
        return None
    check_size(record.value)
    return json_event(topic, record.value)


def _requests(parts: Sequence[ServedRows]) -> Iterator[NDArray[np.uint32]]:
    """The requests of each part's rows, numbered over all parts."""
    first = 0
    for part in parts:
        yield part.row_request + np.uint32(first)
        first += len(part.ts_ms)
