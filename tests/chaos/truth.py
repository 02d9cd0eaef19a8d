"""What must come out of the inputs, by the slow oracle; their records are read here in the plainest way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from stream.join.config import JoinConfig
from stream.records.limits import EARLIEST_MS
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, SERVED
from stream.records.wire import EventsRecord, ServedRecord
from tests.chaos.simulated_users import BROKEN_MARK
from tests.chaos.topic_log import Stored, TopicLog
from tests.stream.oracle import LogEvent, Rejected, Truth, join_whole_log

Unreadable = tuple[str, int, int]  # topic, partition, offset
_EVENTS = (IMPRESSIONS, CLICKS, CONVERSIONS)


class ServedRow(NamedTuple):
    """What an example must hold of the row that it is of; columns as bytes."""

    user_key: int
    model_version: int
    logit: bytes
    p: bytes
    conversion_logit: bytes
    conversion_p: bytes
    propensity: bytes
    ids: bytes
    dense: bytes


@dataclass
class Inputs:
    """The inputs as the broker holds them."""

    served: dict[int, ServedRow] = field(default_factory=dict)
    rows: list[LogEvent] = field(default_factory=list)  # of served
    events: dict[str, list[LogEvent]] = field(default_factory=lambda: {t: [] for t in _EVENTS})
    misdated: set[Rejected] = field(default_factory=set)
    unreadable: set[Unreadable] = field(default_factory=set)

    @classmethod
    def read(cls, log: TopicLog) -> Inputs:
        """Read them all."""
        inputs = cls()
        for stored in log.records(SERVED):
            inputs._add_served(stored)
        for topic in _EVENTS:
            for partition, records in log.partitions(topic):
                for stored in records:
                    if BROKEN_MARK in stored.value:
                        inputs.unreadable.add((topic, partition, stored.offset))
                    else:
                        inputs._add_events(topic, stored)
        return inputs

    def truth(self, config: JoinConfig) -> Truth:
        """What the join must make of them."""
        truth = join_whole_log(config, self.rows, *(self.events[topic] for topic in _EVENTS))
        truth.rejected |= self.misdated
        return truth

    def _add_served(self, stored: Stored) -> None:
        record = msgspec.msgpack.decode(stored.value, type=ServedRecord)
        columns = record.arrays()
        for at, request in enumerate(columns["row_request"].tolist()):
            impression_id = int(columns["impression_id"][at])
            self.rows.append(LogEvent(impression_id, int(columns["ts_ms"][request])))
            self.served.setdefault(impression_id, _served_row(record.model_version, columns, at, request))

    def _add_events(self, topic: str, stored: Stored) -> None:
        for event in _events(stored):
            if event.ts_ms < EARLIEST_MS:
                self.misdated.add((topic, event.impression_id, event.ts_ms))
            else:
                self.events[topic].append(event)


def _served_row(model_version: int, columns: dict[str, NDArray[Any]], at: int, request: int) -> ServedRow:
    return ServedRow(
        user_key=int(columns["user_key"][request]),
        model_version=model_version,
        logit=columns["logit"][at].tobytes(),
        p=columns["p"][at].tobytes(),
        conversion_logit=columns["conversion_logit"][at].tobytes(),
        conversion_p=columns["conversion_p"][at].tobytes(),
        propensity=columns["propensity"][at].tobytes(),
        ids=columns["request_ids"][request].tobytes() + columns["ad_ids"][at].tobytes(),
        dense=columns["request_dense"][request].tobytes() + columns["ad_dense"][at].tobytes(),
    )


def _events(stored: Stored) -> Iterator[LogEvent]:
    """The events of a record that is JSON or columnar; none of a promise."""
    if stored.value[0] >= 0x80:
        columns = msgspec.msgpack.decode(stored.value, type=EventsRecord).arrays()
        rows = zip(*(columns[name].tolist() for name in ("impression_id", "ts_ms", "value")), strict=True)
        for impression_id, ts_ms, value in rows:
            yield LogEvent(impression_id, ts_ms, value, stored.produced_ms)
        return
    fields = orjson.loads(stored.value)
    if "watermark_ms" not in fields:
        value = float(np.float32(fields.get("value", 0.0)))
        yield LogEvent(int(fields["impression_id"]), fields["ts_ms"], value, stored.produced_ms)
