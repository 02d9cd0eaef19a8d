"""Events of the join that give no example, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.join.state.waiting import Events
from stream.records.events import event_json
from stream.records.partition import partition_of
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


class Home(NamedTuple):
    """The partition of a join, and of how many; 0: it is not known."""

    partition: int
    partitions: int

    def is_elsewhere(self, user_keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these users have their served rows in another partition, (B,)."""
        if not self.partitions or not len(user_keys):
            return np.zeros(len(user_keys), np.bool_)
        elsewhere: NDArray[np.bool_] = partition_of(user_keys, self.partitions) != self.partition
        return elsewhere


class Rejects:
    """What was rejected since the last `take`. An event is added while its record is unfinished; that finishes it."""

    def __init__(self, inputs: JoinInputs, state: JoinState, home: Home, display_horizon_s: float) -> None:
        self._inputs = inputs
        self._state = state
        self._home = home
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
        references = self._state.look_up(events.impression_id).tolist()
        dropped = self._state.were_dropped(events.impression_id).tolist()
        self.add(topic, events, map(self._missing, references, dropped))

    def wrong_user(self, topic: str, events: Events) -> None:
        """Reject events of rows that were served to somebody else."""
        self.add(topic, events, (("wrong_user", _wrong_user(user)) for user in events.user_key.tolist()))

    def wrong_partition(self, topic: str, events: Events) -> None:
        """Reject events that wait where no row of their user can come."""
        homes = zip(events.user_key.tolist(), self._homes(events), strict=True)
        self.add(topic, events, (("wrong_partition", self._wrong_partition(user, home)) for user, home in homes))

    def _homes(self, events: Events) -> list[int]:
        homes: list[int] = partition_of(events.user_key, self._home.partitions).tolist() if len(events) else []
        return homes

    def _wrong_partition(self, user_key: int, home: int) -> str:
        return (
            f"lies in partition {self._home.partition}, its user's is {home} of {self._home.partitions}: user_key="
            f"{user_key} has no served row here. Partition keys by murmur2 of its decimal digits, as Kafka's Java "
            "client does, and send the user_key that was answered, as text."
        )

    def _missing(self, reference: int, dropped: bool) -> tuple[str, str]:
        waited = f"within {self._horizon_s:g} s of event time"
        if self._state.is_displayed(reference):
            return "no_click", f"displayed, but no click came {waited}"
        if reference >= 0:
            return "unknown_impression", f"served, but no display came {waited}"
        if dropped:
            return "undisplayed", f"its served row was dropped as undisplayed: no display had come {waited}"
        return "unknown_impression", f"no served row came {waited}, or this worker took over after it was dropped"


def _wrong_user(user_key: int) -> str:
    return (
        f"user_key={user_key} is not the user that this impression was served to. Send the user_key that was answered "
        "with the impression_id, as text: JSON readers round integers beyond 2^53."
    )
