"""What the market sent while no worker was there: served rows, impressions, clicks and conversions in the topics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.served_rows import served_records
from stream.kafka.broker import Broker
from stream.records.partition import partition_of
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, SERVED
from stream.records.wire import EventsRecord
from tests.bench.loop_market import SPEC, STRETCH_S, LoopMarket, Stretch

_IN_FLIGHT = 2_000  # records handed to the producer before it is waited for


class _Events(NamedTuple):
    """Events on their way to one topic."""

    ts_ms: NDArray[np.int64]
    impression_id: NDArray[np.uint64]
    user_key: NDArray[np.uint64]
    position: NDArray[np.int64]
    value: NDArray[np.float32]

    def take(self, which: NDArray[Any]) -> _Events:
        return _Events(*(column[which] for column in self))

    def joined(self, other: _Events) -> _Events:
        return _Events(
            ts_ms=np.concatenate((self.ts_ms, other.ts_ms)),
            impression_id=np.concatenate((self.impression_id, other.impression_id)),
            user_key=np.concatenate((self.user_key, other.user_key)),
            position=np.concatenate((self.position, other.position)),
            value=np.concatenate((self.value, other.value)),
        )


class Sent(NamedTuple):
    """One record of the log."""

    topic: str
    partition: int
    sent_ms: int
    value: bytes


@dataclass(frozen=True, slots=True)
class LoopLog:
    """The records in the order in which they are sent, and how many rows of each topic they hold."""

    records: list[Sent]
    rows: Counter[str]
    end_ms: int

    @property
    def impressions(self) -> int:
        """Displays."""
        return self.rows[IMPRESSIONS]

    def of_agents(self) -> dict[str, int]:
        """How many examples each agent counts when it is done: exposures, clicks and conversions of an exact join."""
        without = self.rows[IMPRESSIONS] + self.rows[CLICKS]
        examples = without + self.rows[CONVERSIONS]
        return {"join": examples, "sessions": examples, "learn": examples, "calibrate": without}

    async def send(self, broker: Broker) -> None:
        """Send it all, every record with the time at which it was sent."""
        sends: list[asyncio.Future[Any]] = []
        async with broker.producer(linger_ms=5, max_batch_size=1 << 20, max_request_size=4 << 20) as producer:
            for topic, partition, sent_ms, value in self.records:
                name = broker.topic(topic)
                sends.append(await producer.send(name, value, partition=partition, timestamp_ms=sent_ms))
                if len(sends) == _IN_FLIGHT:
                    await asyncio.gather(*sends)
                    sends.clear()
            await asyncio.gather(*sends)


def loop_log(market: LoopMarket, start_ms: int, stretches: int, partitions: int) -> LoopLog:
    """What the market sends in so many stretches from ``start_ms`` on.

    Events are sent when they happen: those after the end of the log never are, nor what was displayed just before it.
    """
    ints, keys = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    none = _Events(ints, keys, keys, ints, np.zeros(0, np.float32))
    waiting = dict.fromkeys((IMPRESSIONS, CLICKS, CONVERSIONS), none)
    records: list[Sent] = []
    rows: Counter[str] = Counter()
    end_ms = start_ms
    for number in range(stretches):
        made = market.stretch(number, start_ms)
        end_ms = start_ms + round((number + 1) * STRETCH_S * 1000)
        for partition, record in served_records(made.scored, SPEC, partitions):
            records.append(Sent(SERVED, partition, end_ms, record.encode()))
        for topic, events in _events(made).items():
            now = waiting[topic].joined(events)
            due = now.ts_ms < end_ms
            rows[topic] += int(np.count_nonzero(due))
            records += _sent(topic, now.take(due), end_ms, partitions)
            waiting[topic] = now.take(~due)
    return LoopLog(records, rows, end_ms)


def _sent(topic: str, events: _Events, sent_ms: int, partitions: int) -> Iterator[Sent]:
    events = events.take(np.argsort(events.ts_ms, kind="stable"))
    where = partition_of(events.user_key, partitions)
    for partition in np.unique(where).tolist():
        mine = events.take(where == partition)
        yield Sent(topic, partition, sent_ms, EventsRecord.of(rows=len(mine.ts_ms), **mine._asdict()).encode())


def _events(made: Stretch) -> dict[str, _Events]:
    scored, reactions = made.scored, made.reactions
    rows = len(made.display_ms)
    shown = _Events(
        ts_ms=made.display_ms,
        impression_id=scored.impression_id,
        user_key=scored.ids.user_key[scored.encoded.row_request],
        position=np.arange(rows) - scored.starts()[scored.encoded.row_request],
        value=np.zeros(rows, np.float32),
    )
    clicks, bought = shown.take(reactions.clicked), shown.take(reactions.converted)
    return {
        IMPRESSIONS: shown,
        CLICKS: clicks._replace(ts_ms=clicks.ts_ms + reactions.click_delay_ms),
        CONVERSIONS: bought._replace(ts_ms=bought.ts_ms + reactions.conversion_delay_ms, value=reactions.value),
    }
