"""Events on their way to the join: each input's, delivered in event time as far as its topic has come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.records.events import EVENT_COLUMNS, EventRows

_EVENT = np.dtype(
    [("ts_ms", "<i8"), ("impression_id", "<u8"), ("user_key", "<u8"), ("position", "<i4"), ("value", "<f4")]
)


class EventsOnTheirWay:
    """Events of one input that have not been delivered yet."""

    def __init__(self) -> None:
        self._waiting: NDArray[np.void] = np.zeros(0, _EVENT)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self,
        ts_ms: NDArray[np.int64],
        impression_id: NDArray[np.uint64],
        user_key: NDArray[np.uint64],
        position: NDArray[np.intp] | int = 0,
        value: NDArray[np.float32] | float = 0.0,
    ) -> None:
        """Events that will happen at ``ts_ms``, (B,)."""
        added = np.zeros(len(ts_ms), _EVENT)
        added["ts_ms"], added["impression_id"], added["user_key"] = ts_ms, impression_id, user_key
        added["position"], added["value"] = position, value
        self._waiting = np.concatenate((self._waiting, added))

    def take_until(self, end_ms: float) -> EventRows:
        """Those with ``ts_ms < end_ms``, in event time."""
        due = self._waiting["ts_ms"] < end_ms
        events = self._waiting[due]
        self._waiting = self._waiting[~due]
        events = events[np.argsort(events["ts_ms"], kind="stable")]
        columns: dict[str, Any] = {name: np.ascontiguousarray(events[name]) for name in EVENT_COLUMNS}
        return EventRows(**columns)
