"""What the joins written with other libraries share: records exploded into rows, and a join over dictionaries.

It is what one writes without columns: a dict a row, and deques of those that wait.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from learners.examples.kinds import CLICK, EXPOSURE
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from stream.records.wire import EventsRecord, ServedRecord
from tests.bench.join_times import HORIZON_MS, LEAD_MS

Row = dict[str, Any]

INPUTS = (SERVED, IMPRESSIONS, CLICKS)
_served = msgspec.msgpack.Decoder(ServedRecord)
_events = msgspec.msgpack.Decoder(EventsRecord)


def rows_of(topic: str, value: bytes) -> list[Row]:
    """The rows of one record as dicts with ``topic``, ``ts_ms`` and ``impression_id``; a promise has none of the last.

    ``topic`` is without a prefix. A served row carries all its columns.
    """
    if topic == SERVED:
        return _served_rows(_served.decode(value))
    if value[:1] == b"{":
        return [_json_row(topic, msgspec.json.decode(value))]
    return _event_rows(topic, _events.decode(value))


def _served_rows(record: ServedRecord) -> list[Row]:
    if not record.rows:
        return [{"topic": SERVED, "ts_ms": record.watermark_ms}]
    column = {name: array.tolist() for name, array in record.arrays().items()}
    return [
        {
            "topic": SERVED,
            "ts_ms": column["ts_ms"][request],
            "impression_id": column["impression_id"][at],
            "user_key": column["user_key"][request],
            "model_version": record.model_version,
            "logit": column["logit"][at],
            "p": column["p"][at],
            "conversion_logit": column["conversion_logit"][at],
            "conversion_p": column["conversion_p"][at],
            "propensity": column["propensity"][at],
            "ids": column["request_ids"][request] + column["ad_ids"][at],
            "dense": column["request_dense"][request] + column["ad_dense"][at],
        }
        for at, request in enumerate(column["row_request"])
    ]


def _event_rows(topic: str, record: EventsRecord) -> list[Row]:
    if not record.rows:
        return [{"topic": topic, "ts_ms": record.watermark_ms}]
    column = record.arrays()
    ids, times = column["impression_id"].tolist(), column["ts_ms"].tolist()
    return [
        {"topic": topic, "ts_ms": ts_ms, "impression_id": impression_id}
        for impression_id, ts_ms in zip(ids, times, strict=True)
    ]


def _json_row(topic: str, event: Row) -> Row:
    if "watermark_ms" in event:
        return {"topic": topic, "ts_ms": event["watermark_ms"]}
    return {"topic": topic, "ts_ms": event["ts_ms"], "impression_id": int(event["impression_id"])}


def example(served: Row, shown_ms: int, kind: int, known_ms: int) -> Row:
    """The output row: the served columns, at the time of the display, and when this event of it was."""
    return {**served, "topic": "examples", "ts_ms": shown_ms, "kind": kind, "known_ms": known_ms}


class DictJoin:
    """The join of one partition. Feed it the rows of each topic in their order, the topics in any interleaving.

    A displayed row is an exposure once its served row is there and the slowest topic has come to its display, less
    the lead; its click is another example when it comes. Rows are forgotten when no click can come any more.
    """

    def __init__(self, horizon_ms: int = HORIZON_MS, lead_ms: int = LEAD_MS) -> None:
        self._horizon_ms = horizon_ms
        self._lead_ms = lead_ms
        self._served: dict[int, Row] = {}
        self._exposed: dict[int, int] = {}  # impression id -> display time
        self._clicks: dict[int, int] = {}  # that wait for their exposure
        self._waiting: deque[tuple[int, int]] = deque()  # (display time, impression id), in the order of displays
        self._known: deque[tuple[int, int]] = deque()  # the same of exposures
        self._reached = dict.fromkeys(INPUTS, 0)

    def take(self, row: Row) -> list[Row]:
        """Take in one row; return the examples that it yields."""
        topic, ts_ms, key = row["topic"], row["ts_ms"], row.get("impression_id")
        examples: list[Row] = []
        if key is not None:
            if topic == SERVED:
                self._served[key] = row
            elif topic == IMPRESSIONS:
                self._waiting.append((ts_ms, key))
            elif key in self._exposed:
                examples.append(example(self._served[key], self._exposed[key], CLICK, ts_ms))
            else:
                self._clicks[key] = ts_ms
        self._reached[topic] = ts_ms
        slowest_ms = min(self._reached.values())
        while self._waiting and self._waiting[0][0] <= slowest_ms + self._lead_ms:
            if self._waiting[0][1] not in self._served:
                break  # its served row is under way
            self._expose(*self._waiting.popleft(), examples)
        while self._known and self._known[0][0] + self._horizon_ms < slowest_ms:
            _, gone = self._known.popleft()
            del self._exposed[gone], self._served[gone]
        return examples

    def _expose(self, shown_ms: int, key: int, examples: list[Row]) -> None:
        examples.append(example(self._served[key], shown_ms, EXPOSURE, shown_ms))
        self._exposed[key] = shown_ms
        self._known.append((shown_ms, key))
        if key in self._clicks:
            examples.append(example(self._served[key], shown_ms, CLICK, self._clicks.pop(key)))
