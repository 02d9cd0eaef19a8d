"""Many records of one input, decoded together: what a step of the join takes in at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import groupby
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.join.arrival import Arrivals, Clock
from stream.join.output import Records
from stream.join.rejects import Reject
from stream.kafka.input_record import InputRecord
from stream.records.columns import RecordError
from stream.records.events import (
    EMPTY_EVENTS,
    EVENT_COLUMNS,
    EventRows,
    decode_events,
    events_until,
    is_json,
    json_events,
)
from stream.records.limits import FIRST_NO_JSON, MAX_JSON_BYTES, check_ahead
from stream.records.served import ServedRows, SpecWidths, decode_served, served_until, with_possible_scores
from stream.records.validity import impossible_scores
from stream.records.wire import SCORES

_BY_REQUEST = ("ts_ms", "user_key", "model_version", "request_ids", "request_dense")
_BY_ROW = ("impression_id", *SCORES, "ad_ids", "ad_dense")


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


def events_batch(
    topic: str, records: Sequence[InputRecord], max_ahead_ms: int, clock: Clock | None = None
) -> EventBatch:
    """Decode records of a public input; an event later than its record by more than ``max_ahead_ms`` is a reject."""
    found = _FoundEvents(topic, records, max_ahead_ms, clock)
    for may_be_event, run in groupby(range(len(records)), key=lambda at: _may_be_event(records[at])):
        indices = [*run]
        if may_be_event:
            found.take_events(indices[0], indices[-1] + 1)
        else:
            for at in indices:
                found.take(at)
    columns = _joined([*found.parts, EMPTY_EVENTS], EVENT_COLUMNS)
    return EventBatch(EventRows(**columns), found.records(), found.rejects)


def served_batch(
    records: Sequence[InputRecord], spec: SpecWidths, max_ahead_ms: int, clock: Clock | None = None
) -> ServedBatch:
    """Decode records of the served topic."""
    found = _Found(records, max_ahead_ms, clock)
    parts, indices = [ServedRows.empty(spec)], [0]
    for at, record in enumerate(records):
        latest_ms = found.latest_ms(at)
        try:
            rows = served_until(decode_served(record.value, spec), latest_ms)
            found.note(at, rows, latest_ms)
        except RecordError as error:
            found.reject(record, error)
            continue
        if len(rows):
            parts.append(rows)
            indices.append(at)
    columns = _joined(parts, (*_BY_ROW, *_BY_REQUEST))
    if impossible_scores(SimpleNamespace(**columns)).any():  # one look at all, since hardly ever one is
        parts = [found.with_possible_scores(at, part) for at, part in zip(indices, parts, strict=True)]
        columns = _joined(parts, (*_BY_ROW, *_BY_REQUEST))
    row_request = np.concatenate(list(_requests(parts)))
    return ServedBatch(ServedRows(**columns, row_request=row_request), found.records(), found.rejects)


class _Found:
    """What was found in each of M records."""

    def __init__(self, records: Sequence[InputRecord], max_ahead_ms: int, clock: Clock | None) -> None:
        self.rejects: list[Reject] = []
        self._records = records
        self._arrivals = Arrivals.of(records, clock)
        self._latest_ms = self._arrivals.produced_ms + max_ahead_ms
        self._rows = [0] * len(records)
        self._promises = [0] * len(records)

    def latest_ms(self, at: int) -> int:
        """The latest time that an event of a record can have."""
        return int(self._latest_ms[at])

    def note(self, at: int, rows: EventRows | ServedRows, latest_ms: int) -> None:
        """A batch of rows. Raises RecordError for a promise that is too far ahead."""
        record = self._records[at]
        self._promise(at, rows.watermark_ms, latest_ms)
        self._rows[at] = len(rows)
        self.rejects += [Reject(record.topic, record.offset, *astuple(one)) for one in rows.rejected]

    def with_possible_scores(self, at: int, rows: ServedRows) -> ServedRows:
        """The rows of a record without those of impossible scores, which become rejects."""
        kept = with_possible_scores(rows)
        if len(kept) < len(rows):
            record, before = self._records[at], len(rows.rejected)
            self._rows[at] = len(kept)
            self.rejects += [Reject(record.topic, record.offset, *astuple(one)) for one in kept.rejected[before:]]
        return kept

    def reject(self, record: InputRecord, error: RecordError) -> None:
        """A record that cannot be read."""
        self.rejects.append(Reject(record.topic, record.offset, error.reason, error.detail, record.value or b""))

    def records(self) -> Records:
        """Where the rows stood."""
        offsets = np.array([one.offset for one in self._records], np.int64)
        rows, promise_ms = np.array(self._rows, np.int64), np.array(self._promises, np.int64)
        return Records(offsets, rows, self._arrivals.produced_ms, promise_ms, self._arrivals.until_ms)

    def _promise(self, at: int, watermark_ms: int, latest_ms: int) -> None:
        check_ahead("watermark_ms", watermark_ms, latest_ms)
        self._promises[at] = watermark_ms


class _FoundEvents(_Found):
    """The same of a public input, and the rows themselves."""

    def __init__(self, topic: str, records: Sequence[InputRecord], max_ahead_ms: int, clock: Clock | None) -> None:
        super().__init__(records, max_ahead_ms, clock)
        self.parts: list[EventRows] = []
        self._topic = topic

    def take_events(self, first: int, end: int) -> None:
        """Decode records together; where one of them is bad, its half, and the half of that, down to itself."""
        run = self._records[first:end]
        rows = json_events(self._topic, [record.value or b"" for record in run])
        if rows is not None and (rows.ts_ms <= self._latest_ms[first:end]).all():
            self.parts.append(rows)
            self._rows[first:end] = [1] * len(run)
            return
        if len(run) == 1:
            self.take(first)
            return
        middle = (first + end) // 2
        self.take_events(first, middle)
        self.take_events(middle, end)

    def take(self, at: int) -> None:
        """Decode one record, of whatever kind."""
        record = self._records[at]
        latest_ms = self.latest_ms(at)
        try:
            rows = decode_events(self._topic, record.value, record.content_type)
            if len(rows) == 1 and is_json(record.value or b"", record.content_type):
                check_ahead("ts_ms", int(rows.ts_ms[0]), latest_ms)  # the dead letter holds the record as it came
            rows = events_until(self._topic, rows, latest_ms)
            self.note(at, rows, latest_ms)
        except RecordError as error:
            self.reject(record, error)
            return
        self.parts.append(rows)


def _joined(parts: Sequence[EventRows] | Sequence[ServedRows], names: Sequence[str]) -> dict[str, Any]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def _may_be_event(record: InputRecord) -> bool:
    """Whether to try and decode it together with others: not, where that is bound to fail."""
    value = record.value
    if not value or len(value) > MAX_JSON_BYTES or b'"watermark_ms"' in value:
        return False
    return value[0] < FIRST_NO_JSON if record.content_type is None else record.content_type == "application/json"


def _requests(parts: Sequence[ServedRows]) -> Iterator[NDArray[np.uint32]]:
    """The requests of each part's rows, numbered over all parts."""
    first = 0
    for part in parts:
        yield part.row_request + np.uint32(first)
        first += len(part.ts_ms)
