"""Conversions of settled clicks, which a store outside of the join keeps: who asks for which, and what that yields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION
from stream.examples import ExampleRows
from stream.settled_clicks import SettledClicks
from stream.waiting_events import Events


class Answer(NamedTuple):
    """What became of B conversions that had asked, by their places in it: each is in one of the four.

    unknown : their click is not known (yet) · repeated : the click had converted before · late : beyond the horizon,
    with what is to be said of it · the others, in `examples`.
    """

    events: Events
    unknown: NDArray[np.bool_]
    repeated: int
    late: Mapping[int, str]
    examples: list[ExampleRows]


class Conversions:
    """Conversions that ask for their click; a click converts once, up to ``horizon_ms`` after it."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._asking: list[Events] = []
        self._converted: set[int] = set()  # clicks whose conversion is not in the store yet

    def __len__(self) -> int:
        return sum(map(len, self._asking))

    def ask(self, events: Events) -> None:
        """Ask when the next answer comes."""
        self._asking.append(events)

    def wanted(self) -> NDArray[np.uint64]:
        """The impression ids asked for, each once."""
        return np.unique(Events.joined(self._asking).impression_id) if self._asking else np.zeros(0, np.uint64)

    def answer(self, clicks: SettledClicks, first_record: np.uint32) -> Answer | None:
        """Answer all that ask, in the order of their records, whose numbers count from ``first_record`` and wrap."""
        if not self._asking:
            return None
        events, self._asking = Events.joined(self._asking), []
        events = events.take(np.argsort(events.record - first_record, kind="stable"))
        row_of = {key: at for at, key in enumerate(clicks.examples.impression_id.tolist())}
        rows = np.array([row_of.get(key, -1) for key in events.impression_id.tolist()], np.intp)
        repeated, late, examples = 0, {}, []
        for at in np.flatnonzero(rows >= 0).tolist():
            key = int(events.impression_id[at])
            click = clicks.examples.take(rows[at : at + 1])
            after_ms = int(events.ts_ms[at]) - int(click.ts_ms[0] + click.delay_ms[0])
            if clicks.converted[rows[at]] or key in self._converted:
                repeated += 1
            elif after_ms > self._horizon_ms:
                late[at] = f"converted {after_ms} ms after the click"
            else:
                self._converted.add(key)
                examples.append(_converted(click, events.take(np.array([at]))))
        return Answer(events, rows < 0, repeated, late, examples)

    def stored(self) -> None:
        """What has converted is in the store."""
        self._converted.clear()


def _converted(click: ExampleRows, conversion: Events) -> ExampleRows:
    return click.with_outcome(
        kind=CONVERSION,
        label=1,
        known_ms=np.maximum(conversion.ts_ms, click.ts_ms + click.delay_ms),
        delay_ms=np.maximum(conversion.ts_ms - click.ts_ms, 0),
        value=conversion.value,
        click_produced_ms=np.zeros(1, np.int64),
    )
