"""What an event does to its row, what then follows from it, and what waits for its row."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from stream.clicks.stored_clicks import StoredClicks
from stream.join.config import JoinConfig
from stream.join.conversions import Conversions
from stream.join.inputs import JoinInputs
from stream.join.new_clicks import NewClicks
from stream.join.rejects import Home, Rejects
from stream.join.state.kernels import ASTRAY, CLICK, DISPLAY, DUPLICATE, FOREIGN, LATE, WAIT
from stream.join.state.state import JoinState
from stream.join.state.waiting import Events, WaitingEvents
from stream.records.examples import ExampleRows
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS

_EVENTS = (IMPRESSIONS, CLICKS, CONVERSIONS)  # inputs of waiting events


class JoinEvents:
    """Impressions, clicks and conversions on their way through the join.

    Parameters
    ----------
    counts : of what became of rows, added to.
    """

    def __init__(
        self, config: JoinConfig, inputs: JoinInputs, state: JoinState, counts: Counter[str], home: Home, salt: int = 0
    ) -> None:
        self.conversions = Conversions(config.ms("conversion_horizon_s"))
        self.clicks = NewClicks(inputs, state)
        self.rejects = Rejects(inputs, state, home, config.display_horizon_s)
        self.waiting = WaitingEvents(salt)
        self._home = home
        self._horizon_ms = config.ms("display_horizon_s")
        self._inputs = inputs
        self._state = state
        self._counts = counts

    def apply(self, topic: str, events: Events) -> NDArray[np.bool_] | None:
        """Apply events of one input, then those that had waited for them; which were refused, (B,), None for none.

        What may have been joined in an earlier life, and is forgotten, is rejected but not refused.
        """
        if topic == CONVERSIONS:
            self.conversions.enqueue(events)
            return None
        apply = self._state.display if topic == IMPRESSIONS else self._state.click
        outcomes, references = apply(events, self._inputs.unfinished(topic))
        counts = np.bincount(outcomes, minlength=ASTRAY + 1)
        if counts[WAIT]:
            waits = np.flatnonzero(outcomes == WAIT)
            outcomes[waits[self._home.is_elsewhere(events.user_key[waits])]] = ASTRAY
            counts = np.bincount(outcomes, minlength=ASTRAY + 1)
        counts[DISPLAY] = 0  # it waits in the state until it may be exposed
        refused = None
        if counts[LATE] or counts[FOREIGN:].any():
            refused = (outcomes >= FOREIGN) | ((outcomes == LATE) & (events.ts_ms > self._state.forgotten_ms))
        for outcome in np.flatnonzero(counts).tolist():
            which = np.flatnonzero(outcomes == outcome)
            self._follow(topic, outcome, events.take(which), references[which])
        if len(self.waiting):
            self.release(events.impression_id[(outcomes == DISPLAY) | (outcomes == CLICK)])
        return refused

    def _follow(self, topic: str, outcome: int, events: Events, references: NDArray[np.int64]) -> None:
        """Do what follows from what became of events."""
        if outcome == DUPLICATE:
            self._counts[f"duplicate_{short(topic)}"] += len(events)
        elif outcome == WAIT:
            self._wait(topic, events)
        elif outcome == LATE:
            self.rejects.late(topic, events, references)
        elif outcome == CLICK:
            self.clicks.add(events, references)
        elif outcome == FOREIGN:
            self.rejects.wrong_user(topic, events)
        elif outcome == ASTRAY:
            self.rejects.wrong_partition(topic, events)

    def _wait(self, topic: str, events: Events) -> None:
        added = self.waiting.add(_EVENTS.index(topic), events, events.ts_ms + self._horizon_ms)
        self._counts[f"duplicate_{short(topic)}"] += len(added) - int(np.count_nonzero(added))
        self._inputs.finish(topic, events.record[~added])

    def release(self, keys: NDArray[np.uint64]) -> None:
        """Apply again what waited for these rows, each input in the order in which its events came."""
        for which, events in self.waiting.take(keys):
            self.apply(_EVENTS[which], events)

    def pass_time(self, watermark_ms: int) -> None:
        """Reject what has waited for long enough."""
        for which, events in self.waiting.take_due(watermark_ms):
            self.rejects.never_joined(_EVENTS[which], events)

    def convert(self, clicks: StoredClicks) -> tuple[ExampleRows | None, bool]:
        """Answer the conversions that asked for clicks: their examples, and whether others were rejected."""
        answer = self.conversions.answer(clicks, np.uint32(self._inputs.unfinished(CONVERSIONS).base))
        if answer is None:
            return None, False
        self._counts["duplicate_conversions"] += len(answer.repeated)
        self._counts["conversions"] += len(answer.converted)
        for finished in (answer.repeated.record, answer.converted):
            self._inputs.finish(CONVERSIONS, finished)
        self.rejects.add(CONVERSIONS, answer.late, (("late", detail) for detail in answer.details))
        self.rejects.wrong_user(CONVERSIONS, answer.foreign)
        astray = self._home.is_elsewhere(answer.unknown.user_key)
        self.rejects.wrong_partition(CONVERSIONS, answer.unknown.take(astray))
        self._wait(CONVERSIONS, answer.unknown.take(~astray))
        return answer.examples, bool(answer.details) or bool(len(answer.foreign)) or bool(astray.any())


def short(topic: str) -> str:
    """The topic's name in counts."""
    return topic.split(".")[1]
