"""The join of one partition: served rows with their impressions, clicks and conversions, in event time.

Pure: no clock, no broker, no randomness. What comes out depends on what came in, not on how the inputs interleaved,
as long as no event comes later than the allowed lateness. ("What was shown is what is learned": the columns of an
example are those of the served row; cf. Ananthanarayanan et al., "Photon", SIGMOD 2013, for joining in event time.)

- A served row is pending until its impression displays it; rows not displayed within `display_horizon_s` are dropped.
- A displayed row settles once: positive at once when a click within `click_window_s` is known, negative when the
  watermark passes the end of the window.
- A click after the window, or one that comes after the negative, corrects it: one more example, up to
  `late_horizon_s` after the display. A click after the window waits for the negative first.
- A click of a settled row may convert once, up to `conversion_horizon_s` after it. Conversions do not hold the
  watermark back: what they wait for (the click) comes earlier in event time, and rows are held long enough.
- An event that misses its row waits until the watermark passes its time by `click_window_s`, then is rejected:
  ``unknown_impression``, or ``no_click`` for a conversion of a row that was displayed. One beyond a horizon is rejected
  as ``late`` while its row is held. Of equal events the first counts.
- Memory: at `max_pending_rows` the oldest settled rows without a click are dropped, then the oldest with one
  (``dropped_settled_rows``); rows not yet settled never are, so they alone can exceed the bound.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from stream.examples import ExampleRows
from stream.inputs import EventRows, RejectedRow, ServedRows, SpecWidths, spec_dtype
from stream.join_rows import (
    CLICKED,
    DISPLAYED,
    SERVED_ONLY,
    UNCLICKED,
    Event,
    HeldRow,
    Outcome,
    build_examples,
    held_data,
)
from stream.low_water import LowWater
from stream.topics import CLICKS, CONVERSIONS, IMPRESSIONS, INPUTS, SERVED
from stream.watermarks import Watermarks

_HOLDING = (SERVED, IMPRESSIONS, CLICKS)  # inputs that hold the watermark back


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """How long the join waits, in seconds of event time (idle inputs: of wall-clock time)."""

    click_window_s: float = 600.0  # most clicks come sooner; the later ones correct
    display_horizon_s: float = 600.0  # a served ad is displayed by then or never
    late_horizon_s: float = 86_400.0  # later clicks no longer move a day-old model
    conversion_horizon_s: float = 30 * 86_400.0  # the usual attribution window
    allowed_lateness_s: float = 5.0  # disorder within one input
    idle_timeout_s: float = 30.0  # longer than a broker's rebalance, shorter than a click window
    max_pending_rows: int = 1_000_000  # about 0.6 GB at 25 ids and 24 dense inputs

    def __post_init__(self) -> None:
        for name in (
            "click_window_s",
            "display_horizon_s",
            "conversion_horizon_s",
            "idle_timeout_s",
            "max_pending_rows",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive: no click, display or conversion could be waited "
                    f"for. Set {_setting(name)}."
                )
        if not self.allowed_lateness_s >= 0:
            raise ValueError(
                f"allowed_lateness_s={self.allowed_lateness_s} must not be negative: windows would end before their "
                f"events are there. Set {_setting('allowed_lateness_s')}."
            )
        if not self.late_horizon_s >= self.click_window_s:
            raise ValueError(
                f"late_horizon_s={self.late_horizon_s} must be at least click_window_s={self.click_window_s}: clicks "
                f"within the window would be late. Set {_setting('late_horizon_s')}."
            )


def _setting(name: str) -> str:
    return f"MILLSTREAM_{name.upper()}"


@dataclass(frozen=True, slots=True)
class Reject:
    """One event that yields nothing; `payload` is its JSON, so that it can be looked at and sent again."""

    topic: str
    offset: int
    reason: str
    detail: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOutput:
    """What became known since the last poll.

    `counts` are increments. `watermark_ms` is 0 before there is one. `low_water` gives per topic the offset to commit
    once `examples` and `rejects` are stored: everything before it is finished.
    """

    examples: ExampleRows | None
    rejects: list[Reject] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    watermark_ms: int = 0
    low_water: dict[str, int] = field(default_factory=dict)


class JoinCore:
    """The join of one partition. Feed it in any interleaving of the inputs, each input in the order of its offsets.

    Topics are named without their prefix. A rebuilt core is given `emitted` the partition's examples first, then the
    inputs from `low_water` on; it then yields what is missing and nothing twice. Rejects may come again after a
    rebuild. A record whose offset was seen before is skipped.
    """

    def __init__(self, config: JoinConfig, spec: SpecWidths, partition: int) -> None:
        self.partition = partition
        self._config = config
        self._dtype = spec_dtype(spec)
        self._window_ms = _ms(config.click_window_s)
        self._display_horizon_ms = _ms(config.display_horizon_s)
        self._late_horizon_ms = _ms(config.late_horizon_s)
        self._conversion_horizon_ms = _ms(config.conversion_horizon_s)
        self._watermarks = Watermarks(_HOLDING, _ms(config.allowed_lateness_s), _ms(config.idle_timeout_s))
        self._emitted_watermark_ms = 0
        self._low_water = {topic: LowWater() for topic in INPUTS}
        self._rows: dict[int, HeldRow] = {}
        self._waiting: dict[int, list[Event]] = {}
        self._unclicked: deque[HeldRow] = deque()  # in the order of settlement
        self._clicked: deque[HeldRow] = deque()
        # due time, tie break, what is due: a display's settlement, an event's last chance, a served batch's end
        self._timers: list[tuple[int, int, HeldRow | Event | list[HeldRow]]] = []
        self._timer_number = 0
        self._outcomes: list[Outcome] = []
        self._rejects: list[Reject] = []
        self._counts: Counter[str] = Counter()
        self._apply: dict[str, Callable[[Event], None]] = {
            IMPRESSIONS: self._impression,
            CLICKS: self._click,
            CONVERSIONS: self._conversion,
        }

    @property
    def held_rows(self) -> int:
        """Rows in memory, settled or not."""
        return len(self._rows)

    @property
    def waiting_events(self) -> int:
        """Events that wait for their served row, display or click."""
        return sum(map(len, self._waiting.values()))

    # ------------------------------------------------------------------------------------------------ inputs

    def emitted(self, examples: ExampleRows, watermark_ms: int = 0) -> None:
        """Take in what the examples topic holds already, in its order; only before the first input.

        Its rows are held as settled: their late clicks and conversions join, their replayed events change nothing.
        `watermark_ms` is that of the newest record; the output's watermark does not fall behind it.
        """
        if any(low.offset() is not None for low in self._low_water.values()):
            raise ValueError(
                f"partition {self.partition}: examples were handed over after inputs had been read; some would be "
                "emitted twice. Call emitted() on a new JoinCore, before its inputs."
            )
        self._emitted_watermark_ms = max(self._emitted_watermark_ms, watermark_ms)
        data = held_data(examples, self._dtype)
        columns = (examples.impression_id, examples.kind, examples.label, examples.ts_ms, examples.delay_ms)
        for at, (key, kind, label, ts_ms, delay_ms) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = HeldRow(data, at, key, ts_ms, -1)
                row.display_ms = ts_ms
                row.state = UNCLICKED
                self._unclicked.append(row)
            if kind == CONVERSION:
                row.converted = True
            if label and row.state == UNCLICKED:
                row.state, row.click_ms = CLICKED, ts_ms + max(delay_ms, 0)
                self._clicked.append(row)
        self._drop_over_bound()

    def served(self, rows: ServedRows, offset: int) -> None:
        """Take in one record of the served topic."""
        newest_ms = int(rows.data["ts_ms"].max()) if len(rows) else None
        if not self._start(SERVED, len(rows), offset, newest_ms, rows.watermark_ms, rows.rejected):
            return
        fresh: list[HeldRow] = []
        keys, times = rows.data["impression_id"].tolist(), rows.data["ts_ms"].tolist()
        for at, (key, ts_ms) in enumerate(zip(keys, times, strict=True)):
            if key in self._rows:
                self._counts["duplicate_served"] += 1
                self._low_water[SERVED].finish(offset)
                continue
            row = self._rows[key] = HeldRow(rows.data, at, key, ts_ms, offset)
            fresh.append(row)
            if key in self._waiting:
                self._retry(key)
        if fresh and newest_ms is not None:
            self._set_timer(newest_ms + self._display_horizon_ms, fresh)

    def impressions(self, rows: EventRows, offset: int) -> None:
        """Take in one record of the impressions topic."""
        self._events(IMPRESSIONS, rows, offset, 0)

    def first_displays(self, rows: EventRows) -> NDArray[np.bool_]:
        """Which of these impressions, before they are fed, display their row for the first time, (B,).

        False for a row that is displayed or settled, one whose display waits for its served row, one that is displayed
        too late, and for all but the first of equal impressions among ``rows``.
        """
        seen: set[int] = set()
        first = np.zeros(len(rows), bool)
        for at, (key, ts_ms) in enumerate(zip(rows.impression_id.tolist(), rows.ts_ms.tolist(), strict=True)):
            if key not in seen and self._would_display(key, ts_ms):
                seen.add(key)
                first[at] = True
        return first

    def _would_display(self, impression_id: int, ts_ms: int) -> bool:
        row = self._rows.get(impression_id)
        if row is None:
            return all(event.topic != IMPRESSIONS for event in self._waiting.get(impression_id, ()))
        return row.state == SERVED_ONLY and ts_ms <= row.served_ms + self._display_horizon_ms

    def clicks(self, rows: EventRows, offset: int, produced_ms: int = 0) -> None:
        """Take in one record of the clicks topic; `produced_ms` is its Kafka timestamp (wall clock)."""
        self._events(CLICKS, rows, offset, produced_ms)

    def conversions(self, rows: EventRows, offset: int) -> None:
        """Take in one record of the conversions topic."""
        self._events(CONVERSIONS, rows, offset, 0)

    def watermark(self, topic: str, watermark_ms: int) -> None:
        """Take in a promise that came outside of a record: no event earlier than `watermark_ms` will follow."""
        self._watermarks.promised(topic, watermark_ms)

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """Settle what the watermark has passed and return what became known since the last poll.

        `now_ms`, the wall clock, is given in live mode only: idle inputs then stop holding the watermark back.
        """
        watermark_ms = self._watermarks.poll(now_ms)
        if watermark_ms is not None:
            self._fire(watermark_ms)
            self._drop_expired(watermark_ms)
        self._drop_over_bound()
        outcomes, rejects, counts = self._outcomes, self._rejects, dict(self._counts)
        self._outcomes, self._rejects, self._counts = [], [], Counter()
        examples = build_examples(outcomes, self._dtype) if outcomes else None
        return JoinOutput(
            examples=examples,
            rejects=rejects,
            counts=counts,
            watermark_ms=max(watermark_ms or 0, self._emitted_watermark_ms),
            low_water={topic: at for topic, low in self._low_water.items() if (at := low.offset()) is not None},
        )

    # ---------------------------------------------------------------------------------------- one event's way

    def _start(
        self, topic: str, rows: int, offset: int, newest_ms: int | None, promise_ms: int, bad: list[RejectedRow]
    ) -> bool:
        low_water = self._low_water[topic]
        if not low_water.start(offset, rows):
            self._counts["redelivered_records"] += 1
            return False
        moved = newest_ms is not None and self._watermarks.seen(topic, newest_ms)
        moved = (promise_ms > 0 and self._watermarks.promised(topic, promise_ms)) or moved
        if moved:
            low_water.anchor(offset)
        self._rejects += [Reject(topic, offset, one.reason, one.detail, one.payload) for one in bad]
        self._counts[f"rows_{_short(topic)}"] += rows + len(bad)
        return True

    def _events(self, topic: str, rows: EventRows, offset: int, produced_ms: int) -> None:
        newest_ms = int(rows.ts_ms.max()) if len(rows) else None
        if not self._start(topic, len(rows), offset, newest_ms, rows.watermark_ms, rows.rejected):
            return
        columns = (rows.impression_id, rows.ts_ms, rows.user_key, rows.position, rows.value)
        apply = self._apply[topic]
        for key, ts_ms, user_key, position, value in zip(*(column.tolist() for column in columns), strict=True):
            apply(Event(topic, offset, key, ts_ms, user_key, position, value, produced_ms))

    def _impression(self, event: Event) -> None:
        row = self._rows.get(event.impression_id)
        if row is None:
            self._wait(event)
        elif row.state != SERVED_ONLY:
            self._duplicate(event)
        elif event.ts_ms > row.served_ms + self._display_horizon_ms:
            self._reject(event, "late", f"displayed {event.ts_ms - row.served_ms} ms after it was served")
        else:
            row.state, row.display_ms, row.display_offset = DISPLAYED, event.ts_ms, event.offset
            self._set_timer(event.ts_ms + self._window_ms, row)
            self._retry(event.impression_id)

    def _click(self, event: Event) -> None:
        row = self._rows.get(event.impression_id)
        if row is None or row.state == SERVED_ONLY:
            self._wait(event)
            return
        beyond = event.ts_ms > row.display_ms + self._window_ms
        if row.state == CLICKED or (beyond and row.late_click is not None):
            self._duplicate(event)
        elif event.ts_ms > row.display_ms + self._late_horizon_ms:
            self._reject(event, "late", f"clicked {event.ts_ms - row.display_ms} ms after the display")
        elif row.state == UNCLICKED:
            self._correct(row, event)
        elif beyond:
            row.late_click = event
        else:
            self._settle_clicked(row, event)

    def _conversion(self, event: Event) -> None:
        row = self._rows.get(event.impression_id)
        if row is None or row.state != CLICKED:
            self._wait(event)
        elif row.converted:
            self._duplicate(event)
        elif event.ts_ms > row.click_ms + self._conversion_horizon_ms:
            self._reject(event, "late", f"converted {event.ts_ms - row.click_ms} ms after the click")
        else:
            row.converted = True
            self._count("converted")
            known_ms, delay_ms = max(event.ts_ms, row.click_ms), max(event.ts_ms - row.display_ms, 0)
            self._outcomes.append(Outcome(row, CONVERSION, 1, known_ms, delay_ms, event.value))
            self._finish(event)

    def _settle_clicked(self, row: HeldRow, click: Event) -> None:
        if row.late_click is not None:
            self._duplicate(row.late_click)
            row.late_click = None
        self._finish_row(row)
        self._outcome_of_click(row, click, SETTLED, known_ms=max(click.ts_ms, row.display_ms))

    def _correct(self, row: HeldRow, click: Event) -> None:
        # A click that came after its window's end was not known before the negative was.
        self._outcome_of_click(row, click, CORRECTION, known_ms=max(click.ts_ms, row.display_ms + self._window_ms))

    def _outcome_of_click(self, row: HeldRow, click: Event, kind: int, known_ms: int) -> None:
        self._count("settled_clicked" if kind == SETTLED else "corrections")
        row.state, row.click_ms = CLICKED, max(click.ts_ms, row.display_ms)
        self._clicked.append(row)
        delay_ms = row.click_ms - row.display_ms
        self._outcomes.append(Outcome(row, kind, 1, known_ms, delay_ms, 0.0, click.produced_ms))
        self._finish(click)
        self._retry(row.impression_id)

    def _settle_unclicked(self, row: HeldRow) -> None:
        self._count("settled_unclicked")
        row.state = UNCLICKED
        self._unclicked.append(row)
        self._finish_row(row)
        self._outcomes.append(Outcome(row, SETTLED, 0, row.display_ms + self._window_ms))
        if row.late_click is not None:
            click, row.late_click = row.late_click, None
            self._correct(row, click)

    # --------------------------------------------------------------------------------- waiting, finished, time

    def _wait(self, event: Event) -> None:
        others = self._waiting.setdefault(event.impression_id, [])
        if any(other.topic == event.topic and other.ts_ms == event.ts_ms for other in others):
            self._duplicate(event)
            return
        others.append(event)
        if not event.timed:
            event.timed = True
            self._set_timer(event.ts_ms + self._window_ms, event)

    def _retry(self, impression_id: int) -> None:
        """Apply the waiting events again, in the order in which they came; those still too early wait on."""
        for event in self._waiting.pop(impression_id, ()):
            self._apply[event.topic](event)

    def _reject(self, event: Event, reason: str, detail: str) -> None:
        self._rejects.append(Reject(event.topic, event.offset, reason, detail, event.json()))
        self._finish(event)

    def _duplicate(self, event: Event) -> None:
        self._count(f"duplicate_{_short(event.topic)}")
        self._finish(event)

    def _finish(self, event: Event) -> None:
        event.finished = True
        self._low_water[event.topic].finish(event.offset)

    def _finish_row(self, row: HeldRow) -> None:
        self._low_water[SERVED].finish(row.served_offset)
        self._low_water[IMPRESSIONS].finish(row.display_offset)

    def _count(self, name: str) -> None:
        self._counts[name] += 1

    def _set_timer(self, due_ms: int, what: HeldRow | Event | list[HeldRow]) -> None:
        self._timer_number += 1
        heapq.heappush(self._timers, (due_ms, self._timer_number, what))

    def _fire(self, watermark_ms: int) -> None:
        """Do what is due: an event may still come *at* the watermark, so a time is passed only when it is before."""
        while self._timers and self._timers[0][0] < watermark_ms:
            what = heapq.heappop(self._timers)[2]
            if isinstance(what, HeldRow):
                if what.state == DISPLAYED:
                    self._settle_unclicked(what)
            elif isinstance(what, Event):
                if not what.finished:
                    self._give_up(what)
            else:
                self._drop_undisplayed(what)

    def _give_up(self, event: Event) -> None:
        row = self._rows.get(event.impression_id)
        waiting = self._waiting.get(event.impression_id, [])
        if event not in waiting:
            return  # a late click: it waits for its negative instead
        waiting.remove(event)
        if not waiting:
            del self._waiting[event.impression_id]
        waited = f"within {self._config.click_window_s:g} s of event time"
        if row is None:
            self._reject(event, "unknown_impression", f"no served row came {waited}")
        elif row.state == SERVED_ONLY:
            self._reject(event, "unknown_impression", f"served, but no display came {waited}")
        else:
            self._reject(event, "no_click", f"displayed, but no click came {waited}")

    def _drop_undisplayed(self, rows: list[HeldRow]) -> None:
        for row in rows:
            if row.state == SERVED_ONLY:
                self._count("undisplayed")
                self._low_water[SERVED].finish(row.served_offset)
                del self._rows[row.impression_id]

    def _drop_expired(self, watermark_ms: int) -> None:
        unclicked, clicked = self._unclicked, self._clicked
        while unclicked and (
            unclicked[0].state != UNCLICKED or unclicked[0].display_ms + self._late_horizon_ms < watermark_ms
        ):
            self._drop(unclicked.popleft(), UNCLICKED)
        while clicked and clicked[0].click_ms + self._conversion_horizon_ms < watermark_ms:
            self._drop(clicked.popleft(), CLICKED)

    def _drop_over_bound(self) -> None:
        for settled, state in ((self._unclicked, UNCLICKED), (self._clicked, CLICKED)):
            while settled and len(self._rows) > self._config.max_pending_rows:
                if self._drop(settled.popleft(), state):
                    self._count("dropped_settled_rows")

    def _drop(self, row: HeldRow, state: int) -> bool:
        if row.state != state:  # an unclicked row that was corrected since lives on among the clicked
            return False
        del self._rows[row.impression_id]
        return True


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _short(topic: str) -> str:
    return topic.split(".")[1]
