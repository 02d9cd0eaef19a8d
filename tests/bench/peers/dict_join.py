"""What the joins written with other libraries share: records exploded into rows, and a join over dictionaries.

It is what one writes without columns: a dict a row, and a deque of those that wait for the end of their window.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from stream.records import EventsRecord, ServedRecord
from stream.topics import CLICKS, IMPRESSIONS, SERVED
from tests.bench.join_log import WINDOW_MS

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


def example(served: Row, shown_ms: int, label: int) -> Row:
    """The output row: the served columns at the time of the display, labelled."""
    return {**served, "topic": "examples", "ts_ms": shown_ms, "label": label}


class DictJoin:
    """The join of one partition. Feed it the rows of each topic in their order, the topics in any interleaving.

    A displayed row settles as positive as soon as its served row and its click are there, as negative when all three
    topics have passed the end of its window.
    """

    def __init__(self, window_ms: int = WINDOW_MS) -> None:
        self._window_ms = window_ms
        self._served: dict[int, Row] = {}
        self._shown: dict[int, int] = {}
        self._clicked: set[int] = set()
        self._waiting: deque[tuple[int, int]] = deque()  # (display time, impression id), in the order of displays
        self._reached = dict.fromkeys(INPUTS, 0)

    def take(self, row: Row) -> list[Row]:
        """Take in one row; return the examples that it settles."""
        topic, ts_ms, key = row["topic"], row["ts_ms"], row.get("impression_id")
        settled: list[Row] = []
        if key is not None:
            if topic == SERVED:
                self._served[key] = row
            elif topic == IMPRESSIONS:
                self._shown[key] = ts_ms
                self._waiting.append((ts_ms, key))
            else:
                self._clicked.add(key)
            if key in self._clicked and key in self._shown and key in self._served:
                settled.append(self._settle(key, 1))
        self._reached[topic] = ts_ms
        passed_ms = min(self._reached.values()) - self._window_ms
        while self._waiting and self._waiting[0][0] < passed_ms:
            _, waiting = self._waiting.popleft()
            if waiting in self._shown and waiting in self._served:  # else it has settled as positive
                settled.append(self._settle(waiting, 0))
        return settled

    def _settle(self, key: int, label: int) -> Row:
        self._clicked.discard(key)
        return example(self._served.pop(key), self._shown.pop(key), label)
