"""Conversions of clicks, which a store outside of the join keeps: which wait for which, and what that yields."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CONVERSION
from stream.clicks.stored_clicks import StoredClicks
from stream.join.state.waiting import Events
from stream.records.examples import ExampleRows


class Answer(NamedTuple):
    """What became of conversions that waited for their click: each is in one of the five.

    unknown : their click is not known (yet) · foreign : it is another user's · repeated : an equal event was joined
    before · late : beyond the horizon, with ``details`` of each · the others are ``examples``, of the records
    ``converted``.
    """

    unknown: Events
    foreign: Events
    repeated: Events
    late: Events
    details: list[str]
    examples: ExampleRows | None
    converted: NDArray[np.uint32]


class Conversions:
    """Conversions that wait for their click; each time at which it converts counts once, up to a horizon after it."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._waiting: list[Events] = []

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    def enqueue(self, events: Events) -> None:
        """Answer them with the next answer."""
        self._waiting.append(events)

    def wanted(self) -> NDArray[np.uint64]:
        """The impression ids that they wait for, each once."""
        return np.unique(Events.joined(self._waiting).impression_id) if self._waiting else np.zeros(0, np.uint64)

    def answer(self, clicks: StoredClicks, first_record: np.uint32) -> Answer | None:
        """Answer all that wait, in the order of their records, whose numbers count from ``first_record`` and wrap.

        ``clicks`` holds what was stored up to now, the conversions of the last answer too.
        """
        if not self._waiting:
            return None
        events, self._waiting = Events.joined(self._waiting), []
        events = events.take(np.argsort(events.record - first_record, kind="stable"))
        rows = _rows_of(clicks.examples.impression_id, events.impression_id)
        found, of_found = events.take(rows >= 0), rows[rows >= 0]
        own = clicks.examples.user_key[of_found] == found.user_key
        known, of = found.take(own), of_found[own]
        fresh = _first_of_each(clicks, of, known.ts_ms)
        after_ms = known.ts_ms - clicks.examples.known_ms[of]
        late = fresh & (after_ms > self._horizon_ms)
        counts = fresh & ~late
        return Answer(
            unknown=events.take(rows < 0),
            foreign=found.take(~own),
            repeated=known.take(~fresh),
            late=known.take(late),
            details=[f"converted {after} ms after the click" for after in after_ms[late].tolist()],
            examples=_converted(clicks.examples.take(of[counts]), known.take(counts)) if counts.any() else None,
            converted=known.record[counts],
        )


def _rows_of(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Where ``wanted`` stand in ``keys``, which are distinct; −1: nowhere."""
    if not len(keys):
        return np.full(len(wanted), -1, np.intp)
    order = np.argsort(keys)
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where(keys[at] == wanted, at, -1)


def _first_of_each(clicks: StoredClicks, of: NDArray[np.intp], ts_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which conversions, of the clicks ``of`` at ``ts_ms``, are the first of their click and time, (B,)."""
    seen = {(at, before) for at in set(of.tolist()) for before in clicks.converted_ms[at].tolist()}
    fresh = np.empty(len(of), np.bool_)
    for at, pair in enumerate(zip(of.tolist(), ts_ms.tolist(), strict=True)):
        fresh[at] = pair not in seen
        seen.add(pair)
    return fresh


def _converted(clicks: ExampleRows, conversions: Events) -> ExampleRows:
    return clicks.with_event(
        CONVERSION,
        known_ms=conversions.ts_ms,  # as it is, also before the click: with the id it identifies equal events
        delay_ms=np.maximum(conversions.ts_ms - clicks.known_ms, 0),
        value=conversions.value,
        click_produced_ms=np.zeros(len(clicks), np.int64),
    )
