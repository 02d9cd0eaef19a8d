"""Events of the join that give no example, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.join.state.waiting import Events
from stream.records.events import event_json
from stream.records.topics import CLICKS

if TYPE_CHECKING:
    from stream.join.inputs import JoinInputs
    from stream.join.state.state import JoinState


class Reject(NamedTuple):
    """One event that gives no example; `payload` is its JSON, so that it can be looked at and sent again."""

    topic: str
    offset: int
    reason: str
    detail: str
    payload: bytes


def event_payload(topic: str, events: Events, at: int) -> bytes:
    """One of the events as a client would send it."""
    columns = (events.impression_id, events.ts_ms, events.user_key, events.position, events.value)
    return event_json(topic, *(column[at].item() for column in columns))


class Rejects:
    """What was rejected since the last `take`. An event is added while its record is unfinished; that finishes it."""

    def __init__(self, inputs: JoinInputs, state: JoinState, display_horizon_s: float) -> None:
        self._inputs = inputs
        self._state = state
        self._horizon_s = display_horizon_s
        self._rejects: list[Reject] = []

    def take(self) -> list[Reject]:
        """Those since the last time."""
        rejects, self._rejects = self._rejects, []
        return rejects

    def add(self, topic: str, events: Events, why: Iterable[tuple[str, str]]) -> None:
        """Reject events, each for a reason with its detail."""
        offsets = self._inputs.offsets_of(topic, events.record).tolist()
        for at, (offset, (reason, detail)) in enumerate(zip(offsets, why, strict=True)):
            self._rejects.append(Reject(topic, offset, reason, detail, event_payload(topic, events, at)))
        self._inputs.finish(topic, events.record)

    def late(self, topic: str, events: Events, references: NDArray[np.int64]) -> None:
        """Reject displays and clicks beyond their horizon, by what they named."""
        named = zip(events.ts_ms.tolist(), references.tolist(), strict=True)
        self.add(topic, events, (("late", self._late(topic, ts_ms, reference)) for ts_ms, reference in named))

    def _late(self, topic: str, ts_ms: int, reference: int) -> str:
        after_ms = ts_ms - self._state.time_ms(reference)
        if topic == CLICKS:
            return f"clicked {after_ms} ms after it was displayed"
        if reference >= 0 and after_ms > self._horizon_s * 1000:
            return f"displayed {after_ms} ms after it was served"
        return (
            f"displayed at {ts_ms}: rows displayed up to {self._state.forgotten_ms} are no longer known, it may have "
            "been joined before"
        )

    def never_joined(self, topic: str, events: Events) -> None:
        """Reject events whose row did not come."""
        self.add(topic, events, map(self._missing, self._state.look_up(events.impression_id).tolist()))

    def _missing(self, reference: int) -> tuple[str, str]:
        waited = f"within {self._horizon_s:g} s of event time"
        if self._state.is_displayed(reference):
            return "no_click", f"displayed, but no click came {waited}"
        missing = "no served row" if reference < 0 else "served, but no display"
        return "unknown_impression", f"{missing} came {waited}"
