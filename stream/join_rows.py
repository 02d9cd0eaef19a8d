"""What the join remembers of one impression and of one waiting event, and how outcomes become example rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.examples import ExampleRows
from stream.inputs import event_json

SERVED_ONLY, DISPLAYED, UNCLICKED, CLICKED = range(4)
"""States of a row: pending (served, then displayed), then settled (without a click, with one)."""

_COPIED = ("impression_id", "user_key", "logit", "p", "propensity", "model_version", "ids", "dense")


class Event:
    """One impression, click or conversion on its way through the join."""

    __slots__ = (
        "finished",
        "impression_id",
        "offset",
        "position",
        "produced_ms",
        "timed",
        "topic",
        "ts_ms",
        "user_key",
        "value",
    )

    def __init__(
        self,
        topic: str,
        offset: int,
        impression_id: int,
        ts_ms: int,
        user_key: int,
        position: int = 0,
        value: float = 0.0,
        produced_ms: int = 0,
    ) -> None:
        self.topic = topic
        self.offset = offset
        self.impression_id = impression_id
        self.ts_ms = ts_ms
        self.user_key = user_key
        self.position = position
        self.value = value
        self.produced_ms = produced_ms
        self.finished = False
        self.timed = False  # its last day as a waiting event is on the heap

    def json(self) -> bytes:
        """Return the event as a client would send it."""
        return event_json(self.topic, self.impression_id, self.ts_ms, self.user_key, self.position, self.value)


class HeldRow:
    """One served row: where its columns lie (`data[at]`) and what has become of it."""

    __slots__ = (
        "at", "click_ms", "converted", "data", "display_ms", "display_offset",
        "impression_id", "late_click", "served_ms", "served_offset", "state",
    )  # fmt: skip

    def __init__(self, data: NDArray[np.void], at: int, impression_id: int, served_ms: int, served_offset: int) -> None:
        self.data = data
        self.at = at
        self.impression_id = impression_id
        self.served_ms = served_ms
        self.served_offset = served_offset
        self.state = SERVED_ONLY
        self.display_ms = 0
        self.display_offset = -1
        self.click_ms = 0  # never before the display
        self.converted = False
        self.late_click: Event | None = None  # waits for the negative that it corrects


class Outcome(NamedTuple):
    """One example to be: times in Unix milliseconds, `delay_ms` −1 where there is none."""

    row: HeldRow
    kind: int
    label: int
    known_ms: int
    delay_ms: int = -1
    value: float = 0.0
    click_produced_ms: int = 0


def build_examples(outcomes: Sequence[Outcome], dtype: np.dtype[np.void]) -> ExampleRows:
    """Return the examples of `outcomes` in order.

    The held rows then point into the examples' own rows, clicked ones apart from the rest, so that the served batches
    (and, sooner than those of clicks, the rows without one) can be freed.
    """
    data = np.empty(len(outcomes), dtype)
    for i, outcome in enumerate(outcomes):
        data[i] = outcome.row.data[outcome.row.at]
    _, kinds, labels, known_ms, delays_ms, values, produced_ms = zip(*outcomes, strict=True)
    label = np.array(labels, np.uint8)
    examples = ExampleRows(
        kind=np.array(kinds, np.uint8),
        label=label,
        ts_ms=np.array([outcome.row.display_ms for outcome in outcomes], np.int64),
        known_ms=np.array(known_ms, np.int64),
        delay_ms=np.array(delays_ms, np.int64),
        value=np.array(values, np.float32),
        click_produced_ms=np.array(produced_ms, np.int64),
        **{name: np.ascontiguousarray(data[name]) for name in _COPIED},
    )
    for part in (label == 0, label == 1):  # a row corrected in the same breath ends among the clicked
        where = np.flatnonzero(part)
        kept = data[where]
        for at, i in enumerate(where.tolist()):
            outcomes[i].row.data, outcomes[i].row.at = kept, at
    return examples


def held_data(examples: ExampleRows, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Return the examples' columns as rows to hold."""
    data = np.empty(len(examples), dtype)
    for name in _COPIED:
        data[name] = getattr(examples, name)
    data["ts_ms"] = examples.ts_ms
    return data
