"""JSON Schemas of every record, generated from the Structs."""

from __future__ import annotations

from typing import Any

import msgspec

from stream.records.events import JSON_EVENTS, Watermark
from stream.records.topics import (
    CALIBRATION,
    CLICKS,
    CONVERSIONS,
    DEADLETTER,
    EXAMPLES,
    IMPRESSIONS,
    JOURNAL,
    SERVED,
    WEIGHTS,
)
from stream.records.wire import (
    CalibrationRecord,
    DeadLetter,
    DeltaPart,
    EventsRecord,
    ExamplesRecord,
    JournalRecord,
    ServedRecord,
    SnapshotNotice,
)

_COLUMNAR: dict[str, list[type[msgspec.Struct]]] = {
    SERVED: [ServedRecord],
    IMPRESSIONS: [EventsRecord],
    CLICKS: [EventsRecord],
    CONVERSIONS: [EventsRecord],
    EXAMPLES: [ExamplesRecord],
    WEIGHTS: [DeltaPart, SnapshotNotice],
    CALIBRATION: [CalibrationRecord],
    JOURNAL: [JournalRecord],
    DEADLETTER: [DeadLetter],
}


def schemas() -> dict[str, Any]:
    """Return the schemas by name: a topic for its records, "<topic> json" for the JSON of one of its events.

    Records are msgpack; in their schemas a field of bytes is shown as a base64 string, as JSON would hold it.
    "watermark json" is accepted on every public input.
    """
    out: dict[str, Any] = {}
    for topic, records in _COLUMNAR.items():
        found = [msgspec.json.schema(record) for record in records]
        out[topic] = found[0] if len(found) == 1 else {"anyOf": found}
    for topic, event in JSON_EVENTS.items():
        out[f"{topic} json"] = msgspec.json.schema(event)
    out["watermark json"] = msgspec.json.schema(Watermark)
    return out
