"""Event time of a replay: requests in ticks, and a queue of the events that follow from them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from learners.features.encode import Request
from replay.scenario import Display
from stream.records.events import EventRows

IMPRESSION, CLICK, CONVERSION = 0, 1, 2


class Tick(NamedTuple):
    """Requests with ``start_ms <= ts_ms < end_ms``; they are scored together, before the tick's other events."""

    start_ms: int
    end_ms: int
    requests: list[Request]


def ticks(requests: Iterable[Request], start_ms: int, end_ms: int, tick_ms: int) -> Iterator[Tick]:
    """Cut time-ordered requests into ticks of ``tick_ms``; empty ticks are left out."""
    current: list[Request] = []
    at = start_ms
    for request in requests:
        tick = start_ms + (request.ts_ms - start_ms) // tick_ms * tick_ms
        if tick != at and current:
            yield Tick(at, min(at + tick_ms, end_ms), current)
            current = []
        at = tick
        current.append(request)
    if current:
        yield Tick(at, min(at + tick_ms, end_ms), current)


class Events(NamedTuple):
    """Events due, by topic, each in time order."""

    impressions: EventRows
    clicks: EventRows
    conversions: EventRows

    def __len__(self) -> int:
        return len(self.impressions.ts_ms) + len(self.clicks.ts_ms) + len(self.conversions.ts_ms)


class EventQueue:
    """Impressions, clicks and conversions that will happen, popped in event-time order."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, int, int, float]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_ms(self) -> int | None:
        """Event time of the next event, None when there is none."""
        return self._heap[0][0] if self._heap else None

    def push(self, impression_id: int, user_key: int, display: Display) -> None:
        """Add what follows from one display."""
        entry = (impression_id, user_key, display.position)
        heapq.heappush(self._heap, (display.display_ms, IMPRESSION, *entry, 0.0))
        if display.click_ms is not None:
            heapq.heappush(self._heap, (display.click_ms, CLICK, *entry, 0.0))
        if display.conversion_ms is not None:
            heapq.heappush(self._heap, (display.conversion_ms, CONVERSION, *entry, display.value))

    def pop_until(self, end_ms: int) -> Events:
        """Every event with ``ts_ms < end_ms``."""
        due: tuple[list[tuple[int, int, int, int, int, float]], ...] = ([], [], [])
        while self._heap and self._heap[0][0] < end_ms:
            event = heapq.heappop(self._heap)
            due[event[1]].append(event)
        return Events(*(_rows(events) for events in due))


def _rows(events: list[tuple[int, int, int, int, int, float]]) -> EventRows:
    columns = list(zip(*events, strict=True)) if events else [()] * 6
    return EventRows(
        impression_id=np.array(columns[2], np.uint64),
        ts_ms=np.array(columns[0], np.int64),
        user_key=np.array(columns[3], np.uint64),
        position=np.array(columns[4], np.int32),
        value=np.array(columns[5], np.float32),
        watermark_ms=0,
    )
