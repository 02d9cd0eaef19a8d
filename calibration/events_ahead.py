"""Events that came before the time up to which all is known."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.distrust import check_finite, check_times

_DTYPE: Final = np.dtype(
    [("ts_ms", "<i8"), ("delay_ms", "<i8"), ("path", "<i8"), ("logit", "<f4"), ("p", "<f4"), ("of_line", "?")]
)


class Come(NamedTuple):
    """E events whose time has come, in the order in which they were added."""

    ts_ms: NDArray[np.int64]  # (E,) of the exposure
    delay_ms: NDArray[np.int64]  # (E,)
    paths: NDArray[np.int64]  # (E,)
    logit: NDArray[np.float32]  # (E,)
    p: NDArray[np.float32]  # (E,)
    of_line: NDArray[np.bool_]  # (E,)


class EventsAhead:
    """Keeps events until the watermark has come to their time.

    The join lets clicks through at once, its watermark is seconds behind them. Of the exposures that share F(age) is
    expected which had come by the watermark, so later events must not be counted yet: on a display of ten seconds ago
    they would be 5 % too many.
    """

    def __init__(self, events: NDArray[Any] | None = None) -> None:
        self._events = np.zeros(0, _DTYPE) if events is None else events.astype(_DTYPE)

    def __len__(self) -> int:
        return len(self._events)

    def add(self, events: Come) -> None:
        """Keep E events."""
        added = np.zeros(len(events.ts_ms), _DTYPE)
        for name, column in zip(_DTYPE.names or (), events, strict=True):
            added[name] = column
        self._events = np.concatenate((self._events, added))

    def take(self, now_ms: int) -> Come:
        """Those whose time has come; they are kept no longer."""
        due = self._events["ts_ms"] + self._events["delay_ms"] <= now_ms
        come, self._events = self._events[due], self._events[~due]
        return Come(*(np.ascontiguousarray(come[name]) for name in _DTYPE.names or ()))

    def state(self) -> NDArray[np.uint8]:
        """What a restart needs, as bytes."""
        return np.frombuffer(self._events.tobytes(), np.uint8)

    @classmethod
    def from_state(cls, state: NDArray[np.uint8]) -> EventsAhead:
        """Of what `state` gave. Raises ValueError for bytes that are no whole events."""
        events = np.frombuffer(state.tobytes(), _DTYPE).copy()
        check_times("events ahead", events["ts_ms"])
        check_times("delays of events ahead", events["delay_ms"])
        check_finite("logits of events ahead", events["logit"], np.inf)
        check_finite("p of events ahead", events["p"], 1.0)
        if len(events) and int(events["path"].min()) < 0:
            raise ValueError(f"an event ahead has path {events['path'].min()}, below 0: drop the state.")
        return cls(events)
