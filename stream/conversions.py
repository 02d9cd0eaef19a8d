"""Conversions of clicks, which a store outside of the join keeps: who asks for which, and what that yields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION
from stream.examples import ExampleRows
from stream.stored_clicks import StoredClicks
from stream.waiting_events import Events


class Answer(NamedTuple):
    """What became of B conversions that had asked, by their places in it: each is in one of the four.

    unknown : their click is not known (yet) · repeated : an equal event was joined before · late : beyond the horizon,
    with what is to be said of it · the others, in `examples`.
    """

    events: Events
    unknown: NDArray[np.bool_]
    repeated: int
    late: Mapping[int, str]
    examples: ExampleRows | None


class Conversions:
    """Conversions that ask for their click; each time at which it converts counts once, up to a horizon after it, ms."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._asking: list[Events] = []

    def __len__(self) -> int:
        return sum(map(len, self._asking))

    def ask(self, events: Events) -> None:
        """Ask when the next answer comes."""
        self._asking.append(events)

    def wanted(self) -> NDArray[np.uint64]:
        """The impression ids asked for, each once."""
        return np.unique(Events.joined(self._asking).impression_id) if self._asking else np.zeros(0, np.uint64)

    def answer(self, clicks: StoredClicks, first_record: np.uint32) -> Answer | None:
        """Answer all that ask, in the order of their records, whose numbers count from ``first_record`` and wrap.

        ``clicks`` holds what was stored up to now, the conversions of the last answer too.
        """
        if not self._asking:
            return None
        events, self._asking = Events.joined(self._asking), []
        events = events.take(np.argsort(events.record - first_record, kind="stable"))
        rows = _rows_of(clicks.examples.impression_id, events.impression_id)
        known = np.flatnonzero(rows >= 0)
        of, ts_ms = rows[known], events.ts_ms[known]
        fresh = _first_of_each(clicks, of, ts_ms)
        after_ms = ts_ms - clicks.examples.known_ms[of]
        is_late = fresh & (after_ms > self._horizon_ms)
        late = {int(known[at]): f"converted {int(after_ms[at])} ms after the click" for at in np.flatnonzero(is_late)}
        counts = fresh & ~is_late
        examples = _converted(clicks.examples.take(of[counts]), events.take(known[counts])) if counts.any() else None
        return Answer(events, rows < 0, int((~fresh).sum()), late, examples)


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
    for place, pair in enumerate(zip(of.tolist(), ts_ms.tolist(), strict=True)):
        fresh[place] = pair not in seen
        seen.add(pair)
    return fresh


def _converted(clicks: ExampleRows, conversions: Events) -> ExampleRows:
    return clicks.with_event(
        CONVERSION,
        known_ms=conversions.ts_ms,  # as it is, also before the click: with the id it tells equal events
        delay_ms=np.maximum(conversions.ts_ms - clicks.known_ms, 0),
        value=conversions.value,
        click_produced_ms=np.zeros(len(clicks), np.int64),
    )
