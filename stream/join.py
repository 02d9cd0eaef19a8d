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
  watermark back: what they wait for (the click) comes earlier in event time, and is kept long enough.
- An event that misses its row waits until the watermark passes its time by `click_window_s`, then is rejected:
  ``unknown_impression``, or ``no_click`` for a conversion of a row that was displayed. One beyond a horizon is rejected
  as ``late`` while its row is known. Of equal events the first counts.

**What is held.** Pending rows with all their columns. Of settled ones only the key and the time, for `late_horizon_s`:
their columns stand in the examples topic, and clicks that settled stand in a store, from where the shell brings what is
asked for (`wanted_examples`, `wanted_clicks`).

**At the memory bound** (the shell tells how much is over, `relieve`): settled rows beyond their window are forgotten,
oldest first, and their late clicks are rejected (``forgotten_rows``); when that is not enough, time is moved forward
until enough pending rows are due (``hurried_rows``): they settle as unclicked, and a click that comes corrects them. No
row settles twice: an impression as old as the newest row that was forgotten is ``late``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from stream import join_kernels as kernels
from stream.conversions import Conversions
from stream.examples import Displays, ExampleRows, concat, concat_displays
from stream.held_rows import HeldRows
from stream.inputs import EventRows, ServedRows, event_json
from stream.join_config import JoinConfig
from stream.join_kernels import CORRECT, DUPLICATE, HOLD, LATE, SETTLE, SHOWN, WAIT
from stream.join_output import JoinOutput, Records, Reject, Resume
from stream.low_water import LowWater
from stream.settled_clicks import SettledClicks
from stream.told_displays import ToldDisplays
from stream.topics import CLICKS, CONVERSIONS, EXAMPLES, IMPRESSIONS, INPUTS, SERVED
from stream.waiting_events import Events, WaitingEvents
from stream.watermarks import Watermarks

_HOLDING = (SERVED, IMPRESSIONS, CLICKS)  # inputs that hold the watermark back
_EVENTS = (IMPRESSIONS, CLICKS, CONVERSIONS)
_HURRIED_SHARE = 1 / 16  # of the pending rows, each time that time is moved forward


class _Settled(NamedTuple):
    """Rows that settled since the last poll: their places, and their clicks if they have any."""

    places: NDArray[np.int64]
    clicks: Events | None


class _Correcting(NamedTuple):
    """Clicks on rows settled as unclicked: the offsets at which they came, and of the examples that they correct."""

    clicks: Events
    click_offsets: NDArray[np.int64]
    example_offsets: NDArray[np.int64]


class JoinCore:
    """The join of one partition. Feed it in any interleaving of the inputs, each input in the order of its offsets.

    Topics are named without their prefix. One step is: feed records; bring what `wanted_examples` asks for; `poll`;
    store the output, with the offsets of its low water, in one go; tell `stored` where the examples lie; bring what
    `wanted_clicks` asks for, and poll again if that yields something.

    A rebuilt core is given the committed offsets (`start_at`), `recall` the partition's examples from
    `Resume.recalled_from` to the end, then the inputs from the committed offsets on; it then yields what is missing and
    nothing twice. Rejects may come again after a rebuild. A record whose offset was seen before is skipped.

    Parameters
    ----------
    salt : of the hashes of impression ids; the output does not depend on it.
    """

    def __init__(self, config: JoinConfig, partition: int, salt: int = 0) -> None:
        self.partition = partition
        self._window_ms = config.ms("click_window_s")
        self._window_s = config.click_window_s
        self._watermarks = Watermarks(_HOLDING, config.ms("allowed_lateness_s"), config.ms("idle_timeout_s"))
        self._low_water = {topic: LowWater() for topic in INPUTS}
        self._held = HeldRows(config, salt)
        self._waiting = WaitingEvents(salt)
        self._conversions = Conversions(config.ms("conversion_horizon_s"))
        self._newest_conversion_ms = 0
        self._examples_end = 0  # the offset of the next examples record
        self._last_settled = 0  # rows of the last output
        # of earlier lives: the output's watermark, what they told and settled
        self._emitted_watermark_ms = 0
        self._told = ToldDisplays(lambda keys: self._held.look_up(keys) >= kernels.SETTLED)
        self._recalled = 0  # settled rows with lower numbers

        self._displays: list[Events] = []
        self._settled: list[_Settled] = []
        self._correcting_here: list[_Settled] = []  # rows that the same step settled, and their late clicks
        self._correcting: list[_Correcting] = []
        self._further: list[ExampleRows] = []  # corrections and conversions, ready to go
        self._rejects: list[Reject] = []
        self._counts: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def pending_rows(self) -> int:
        """Served rows that are not settled."""
        return self._held.pending

    @property
    def settled_rows(self) -> int:
        """Settled rows whose clicks still count."""
        return self._held.settled

    @property
    def waiting_events(self) -> int:
        """Events that wait for their served row, display or click."""
        return len(self._waiting) + len(self._conversions)

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self._held.bytes + self._waiting.bytes + sum(low.bytes for low in self._low_water.values())

    @property
    def id_bytes(self) -> int:
        """The part of `bytes` that ids and dense inputs of pending rows take."""
        return self._held.id_bytes

    @property
    def watermark_ms(self) -> int:
        """How far time has come by the last poll, 0 before the first that knew."""
        return max(self._watermarks.reached_ms or 0, self._emitted_watermark_ms)

    def ahead(self) -> frozenset[str]:
        """Inputs that have come further than the slowest one: reading on in them only makes rows wait."""
        conversions = frozenset([CONVERSIONS]) if self._newest_conversion_ms > self.watermark_ms else frozenset()
        return self._watermarks.ahead() | conversions

    # ------------------------------------------------------------------------------------------------ earlier lives

    def start_at(self, low_water: Mapping[str, int], resume: Resume) -> None:
        """Go on from committed offsets: records before them are skipped. Only before `recall` and the first input."""
        self._refuse_late()
        for topic, offset in low_water.items():
            self._low_water[topic].start_at(offset)
        if resume.forgotten_ms:
            self._held.forgotten_ms = resume.forgotten_ms
        self._emitted_watermark_ms = resume.watermark_ms
        self._examples_end = resume.recalled_from
        self._held.note_record(0, resume.recalled_from)

    def recall(self, examples: ExampleRows, displays: Displays | None, offset: int, watermark_ms: int = 0) -> None:
        """Take in one record of the partition's examples, in their order; only before the first input.

        Its rows are held as settled: their late clicks join, their replayed events change nothing. What was displayed
        is not told again. `watermark_ms` is that of the record; the output's watermark does not fall behind it.
        """
        self._refuse_late()
        self._emitted_watermark_ms = max(self._emitted_watermark_ms, watermark_ms)
        rows = examples.take(examples.kind != CONVERSION)
        self._held.recall(rows.impression_id, rows.ts_ms, rows.label != 0, offset)
        self._recalled = self._held.next_number
        self._examples_end = offset + 1
        if displays is not None:
            self._told.add(displays, offset)

    def _refuse_late(self) -> None:
        if self._held.pending or len(self._waiting) or any(len(low) for low in self._low_water.values()):
            raise ValueError(
                f"partition {self.partition}: examples were handed over after inputs had been read; some would be "
                "emitted twice. Call start_at() and recall() on a new JoinCore, before its inputs."
            )

    # ------------------------------------------------------------------------------------------------------- inputs

    def served(self, rows: ServedRows, records: Records) -> None:
        """Take in records of the served topic."""
        numbers, fresh = self._start(SERVED, rows.served_ms, records)
        new, met = self._held.add(rows, fresh, numbers, self._low_water[SERVED].open)
        self._repeated(SERVED, numbers[~new], met)
        self._wake(rows.impression_id[fresh[new]])

    def impressions(self, rows: EventRows, records: Records) -> None:
        """Take in records of the impressions topic."""
        self._events(IMPRESSIONS, rows, records)

    def clicks(self, rows: EventRows, records: Records) -> None:
        """Take in records of the clicks topic."""
        self._events(CLICKS, rows, records)

    def conversions(self, rows: EventRows, records: Records) -> None:
        """Take in records of the conversions topic."""
        self._events(CONVERSIONS, rows, records)

    def watermark(self, topic: str, watermark_ms: int) -> None:
        """Take in a promise that came outside of a record: no event earlier than `watermark_ms` will follow."""
        self._watermarks.promised(topic, watermark_ms)

    def _events(self, topic: str, rows: EventRows, records: Records) -> None:
        numbers, fresh = self._start(topic, rows.ts_ms, records)
        produced_ms = np.repeat(records.produced_ms, records.rows)
        columns: list[NDArray[Any]] = [rows.impression_id, rows.ts_ms, rows.user_key, rows.position, rows.value]
        columns.append(produced_ms)
        self._apply(topic, Events.of([*(column[fresh] for column in columns), numbers]))

    def _start(
        self, topic: str, ts_ms: NDArray[np.int64], records: Records
    ) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
        """Note records: which rows were not seen before, and the numbers of their records."""
        low_water = self._low_water[topic]
        known = low_water.seen(records.offsets)
        self._count("redelivered_records", int(np.count_nonzero(known)))
        if known.all():
            return np.zeros(0, np.uint32), np.zeros(0, np.intp)
        fresh = np.flatnonzero(np.repeat(~known, records.rows))
        new = Records(*(column[~known] for column in records))
        numbers = low_water.start(new.offsets, new.rows, self._examples_end)
        moved = self._move_watermark(topic, ts_ms[fresh], new)
        if moved is not None:
            low_water.anchor(int(new.offsets[moved]), self._examples_end)
        self._count(f"rows_{_short(topic)}", len(numbers))
        return numbers, fresh

    def _move_watermark(self, topic: str, ts_ms: NDArray[np.int64], records: Records) -> int | None:
        """Tell the watermark of the newest event and promise; the place of the record that moved it most, if any."""
        moved = None
        if len(ts_ms):
            newest = int(np.argmax(ts_ms))
            newest_ms = int(ts_ms[newest])
            if topic == CONVERSIONS:
                self._newest_conversion_ms = max(self._newest_conversion_ms, newest_ms)
            if self._watermarks.seen(topic, newest_ms):
                moved = int(np.searchsorted(np.cumsum(records.rows), newest, side="right"))
        furthest = int(np.argmax(records.promise_ms))
        if records.promise_ms[furthest] and self._watermarks.promised(topic, int(records.promise_ms[furthest])):
            moved = furthest
        return moved

    # ------------------------------------------------------------------------------------------------ an event's way

    def _apply(self, topic: str, events: Events) -> None:
        """Apply events of one input, then those that had waited for them."""
        if topic == CONVERSIONS:
            self._conversions.ask(events)
            return
        served, shown = self._low_water[SERVED].open, self._low_water[IMPRESSIONS].open
        if topic == IMPRESSIONS:
            fate, met = self._held.show(events, served, shown)
        else:
            fate, met = self._held.click(events, served, shown, self._low_water[CLICKS].open)
        for what in np.unique(fate).tolist():
            which = np.flatnonzero(fate == what)
            self._follow(topic, what, events.take(which), met[which])
        woken = (fate == SHOWN) | (fate == SETTLE) | (fate == CORRECT)
        self._wake(events.impression_id[woken])

    def _follow(self, topic: str, fate: int, events: Events, met: NDArray[np.int64]) -> None:
        """Do what follows from what became of events."""
        if fate == DUPLICATE:
            self._repeated(topic, events.record, met)
        elif fate == WAIT:
            self._wait(topic, events, events.ts_ms + self._window_ms)
        elif fate == HOLD:
            self._wait(topic, events, np.full(len(events), kernels.NEVER))
        elif fate == LATE:
            self._reject_late(topic, events, met)
        elif fate == SHOWN:
            self._show(events)
        elif fate == SETTLE:
            self._count("settled_clicked", len(events))
            self._settled.append(_Settled(met, events))
        elif fate == CORRECT:
            self._correct(events, met)

    def _repeated(self, topic: str, records: NDArray[np.uint32], met: NDArray[np.int64]) -> None:
        """Count repetitions. A record that led to rows settled in an earlier life will need them in the next, too."""
        self._count(f"duplicate_{_short(topic)}", len(records))
        settled = met >= kernels.SETTLED
        numbers = self._held.numbers(met[settled])
        earlier = numbers < self._recalled
        self._low_water[topic].led_to(records[settled][earlier], self._held.example_offsets(numbers[earlier]))

    def _show(self, displays: Events) -> None:
        if len(self._told):
            again, offsets = self._told.take(displays.impression_id)
            self._low_water[IMPRESSIONS].led_to(displays.record[again], offsets)
            displays = displays.take(np.delete(np.arange(len(displays)), again))
        self._displays.append(displays)

    def _correct(self, clicks: Events, met: NDArray[np.int64]) -> None:
        """Correct settled rows: from their columns if this very step settled them, else from the examples topic."""
        self._count("corrections", len(clicks))
        numbers = self._held.numbers(met)
        first_here = self._held.next_number - sum(len(part.places) for part in self._settled)
        here = numbers >= first_here
        if here.any():
            places = np.concatenate([part.places for part in self._settled])
            self._correcting_here.append(_Settled(places[numbers[here] - first_here], clicks.take(here)))
        if not here.all():
            others = clicks.take(~here)
            click_offsets = self._low_water[CLICKS].offsets_of(others.record)
            self._correcting.append(_Correcting(others, click_offsets, self._held.example_offsets(numbers[~here])))

    def _wait(self, topic: str, events: Events, due_ms: NDArray[np.int64]) -> None:
        added = self._waiting.add(_EVENTS.index(topic), events, due_ms)
        self._count(f"duplicate_{_short(topic)}", len(added) - int(np.count_nonzero(added)))
        self._low_water[topic].finish(events.record[~added])

    def _wake(self, keys: NDArray[np.uint64]) -> None:
        """Apply again what waited for these rows, each input in the order in which its events came."""
        for which, events in self._waiting.take(keys):
            self._apply(_EVENTS[which], events)

    def _reject_late(self, topic: str, events: Events, met: NDArray[np.int64]) -> None:
        for at, reference in enumerate(met.tolist()):
            ts_ms = int(events.ts_ms[at])
            if topic == IMPRESSIONS and ts_ms <= self._held.forgotten_ms:
                detail = (
                    f"displayed at {ts_ms}: rows displayed up to {self._held.forgotten_ms} are no longer known, it may "
                    "have been joined before"
                )
            else:
                what = (
                    "displayed {} ms after it was served" if topic == IMPRESSIONS else "clicked {} ms after the display"
                )
                detail = what.format(ts_ms - self._held.time_ms(reference))
            self._reject(topic, events, at, "late", detail)
        self._low_water[topic].finish(events.record)

    def _reject(self, topic: str, events: Events, at: int, reason: str, detail: str) -> None:
        """Put one event among the rejects, while its record is still unfinished."""
        offset = int(self._low_water[topic].offsets_of(events.record[at : at + 1])[0])
        self._rejects.append(Reject(topic, offset, reason, detail, _json(topic, events, at)))

    # ----------------------------------------------------------------------------------------- what the shell brings

    def wanted_examples(self) -> NDArray[np.int64]:
        """Offsets of the examples records that hold what late clicks correct, each once, ascending."""
        offsets = [one.example_offsets for one in self._correcting]
        return np.unique(np.concatenate(offsets)) if offsets else np.zeros(0, np.int64)

    def examples_found(self, records: Mapping[int, ExampleRows]) -> None:
        """Answer `wanted_examples`; clicks on what is missing are rejected as late."""
        correcting, self._correcting = self._correcting, []
        for clicks, click_offsets, offsets in correcting:
            for at, offset in enumerate(offsets.tolist()):
                rows = _settled_row(records.get(offset), clicks.impression_id[at])
                if rows is not None:
                    self._further.append(self._correction(rows, clicks.take(np.array([at]))))
                    continue
                self._count("corrections", -1)
                detail = f"{EXAMPLES}[{self.partition}] no longer holds the row that it corrects (offset {offset})"
                self._rejects.append(Reject(CLICKS, int(click_offsets[at]), "late", detail, _json(CLICKS, clicks, at)))

    def _correction(self, rows: ExampleRows, clicks: Events) -> ExampleRows:
        """One more example for each row: a click that came after its window's end was known after the negative."""
        return rows.with_outcome(
            kind=CORRECTION,
            label=1,
            known_ms=np.maximum(clicks.ts_ms, rows.ts_ms + self._window_ms),
            delay_ms=np.maximum(clicks.ts_ms - rows.ts_ms, 0),
            click_produced_ms=clicks.produced_ms,
        )

    def wanted_clicks(self) -> NDArray[np.uint64]:
        """Impression ids whose settled clicks conversions ask for, each once; only after `stored`.

        A conversion asks when it comes, and again when its row is displayed or clicked.
        """
        return self._conversions.wanted()

    def clicks_found(self, clicks: SettledClicks) -> bool:
        """Answer `wanted_clicks` with those of them that are stored. Return whether there is something to poll."""
        low_water = self._low_water[CONVERSIONS]
        answer = self._conversions.answer(clicks, np.uint32(low_water.open.base))
        if answer is None:
            return False
        self._count("duplicate_conversions", answer.repeated)
        self._count("converted", len(answer.examples))
        for at, detail in answer.late.items():
            self._reject(CONVERSIONS, answer.events, at, "late", detail)
        low_water.finish(answer.events.record[~answer.unknown])
        self._further += answer.examples
        waiting = answer.events.take(answer.unknown)
        self._wait(CONVERSIONS, waiting, waiting.ts_ms + self._window_ms)
        return bool(answer.examples or answer.late) or self._waiting.is_due(self.watermark_ms)

    # ---------------------------------------------------------------------------------------------------------- poll

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """Settle what the watermark has passed and return what became known since the last poll.

        `now_ms`, the wall clock, is given in live mode only: idle inputs then stop holding the watermark back.
        """
        if self._correcting:
            raise ValueError(
                f"partition {self.partition}: polled while clicks wait for the examples that they correct; they would "
                "be lost. Call examples_found() with what wanted_examples() asks for before."
            )
        self._told.sieve()
        watermark_ms = self._watermarks.poll(now_ms)
        if watermark_ms is not None:
            self._pass_time(watermark_ms)
        examples, displays = self._take_examples(), _joined(self._displays)
        rejects, counts = self._rejects, dict(self._counts)
        self._displays, self._rejects, self._counts = [], [], Counter()
        low_water, resume = self._mark()
        return JoinOutput(
            examples=examples,
            displays=displays,
            rejects=rejects,
            counts=counts,
            watermark_ms=resume.watermark_ms,
            low_water=low_water,
            resume=resume,
        )

    def stored(self, offsets: Sequence[int], first_rows: Sequence[int]) -> None:
        """Tell where the last output's examples lie: the offset of each record, and the row that it begins with."""
        first_number = self._held.next_number - self._last_settled
        for offset, row in zip(offsets, first_rows, strict=True):
            if row < self._last_settled:
                self._held.note_record(first_number + row, offset)
        if offsets:
            self._examples_end = offsets[-1] + 1
        self._conversions.stored()

    def relieve(self, over_bytes: int) -> None:
        """Give up about so much memory, see above; the next poll settles what is hurried. Only between steps."""
        wanted = 1 + over_bytes // self._held.settled_row_bytes
        forgotten = self._held.forget(self.watermark_ms - self._window_ms, wanted, passing=True)
        self._count("forgotten_rows", forgotten)
        if forgotten < wanted and self._held.pending:
            due_ms, rows = self._held.nth_due_ms(_HURRIED_SHARE)
            self._count("hurried_rows", rows)
            self._watermarks.hurry(due_ms + 1)

    def _pass_time(self, watermark_ms: int) -> None:
        """Do what is due: an event may still come *at* the watermark, so a time is passed only when it is before."""
        served, shown = self._low_water[SERVED].open, self._low_water[IMPRESSIONS].open
        places, keys, undisplayed = self._held.pass_time(watermark_ms, served, shown)
        self._count("settled_unclicked", len(places))
        self._count("undisplayed", undisplayed)
        if len(places):
            self._settled.append(_Settled(places, None))
            self._wake(keys)
        for which, events in self._waiting.take_due(watermark_ms):
            self._give_up(_EVENTS[which], events)
        self._held.expire(watermark_ms)

    def _give_up(self, topic: str, events: Events) -> None:
        waited = f"within {self._window_s:g} s of event time"
        for at, reference in enumerate(self._held.look_up(events.impression_id).tolist()):
            if self._held.is_displayed(reference):
                self._reject(topic, events, at, "no_click", f"displayed, but no click came {waited}")
            else:
                missing = "no served row" if reference < 0 else "served, but no display"
                self._reject(topic, events, at, "unknown_impression", f"{missing} came {waited}")
        self._low_water[topic].finish(events.record)

    def _mark(self) -> tuple[dict[str, int], Resume]:
        """Where a later life begins to read, and what else it needs."""
        marks = {topic: mark for topic, low in self._low_water.items() if (mark := low.mark(self._examples_end))}
        examples = min([mark.examples_end for mark in marks.values()], default=self._examples_end)
        resume = Resume(
            examples=self._told.first_offset(examples),
            settled=self._held.first_example_offset(self._examples_end),
            forgotten_ms=max(self._held.forgotten_ms, 0),
            watermark_ms=self.watermark_ms,
        )
        return {topic: mark.offset for topic, mark in marks.items()}, resume

    def _take_examples(self) -> ExampleRows | None:
        """Everything that settled, was corrected or converted, in this order; the settled rows' places are given up."""
        settled, corrected, further = self._settled, self._correcting_here, self._further
        self._settled, self._correcting_here, self._further = [], [], []
        parts = [self._correction(self._held.examples(places), clicks) for places, clicks in corrected if clicks]
        parts += further
        self._last_settled = 0
        if settled:
            places = np.concatenate([part.places for part in settled])
            rows = self._held.examples(places)  # ours to change: not a view
            self._held.release(places)
            self._last_settled = len(rows)
            parts = [_with_clicks(rows, settled), *parts]
        return concat(parts) if parts else None

    def _count(self, name: str, count: int) -> None:
        if count:
            self._counts[name] += count


def _with_clicks(rows: ExampleRows, settled: Sequence[_Settled]) -> ExampleRows:
    """Give the rows of all that settled, one after another, the outcome of those that were clicked, in place."""
    outcome = {name: getattr(rows, name) for name in ("label", "known_ms", "delay_ms", "click_produced_ms")}
    end = 0
    for places, clicks in settled:
        here = slice(end, end + len(places))
        end += len(places)
        if clicks is not None:
            display_ms = rows.ts_ms[here]
            click_ms = np.maximum(clicks.ts_ms, display_ms)
            values = (1, click_ms, click_ms - display_ms, clicks.produced_ms)
            for column, value in zip(outcome.values(), values, strict=True):
                column[here] = value
    return rows


def _settled_row(rows: ExampleRows | None, key: np.uint64) -> ExampleRows | None:
    """The settled row of an impression among those of a record."""
    if rows is None:
        return None
    found = np.flatnonzero((rows.impression_id == key) & (rows.kind == SETTLED))
    return rows.take(found[:1]) if len(found) else None


def _json(topic: str, events: Events, at: int) -> bytes:
    """One event as a client would send it."""
    columns = (events.impression_id, events.ts_ms, events.user_key, events.position, events.value)
    return event_json(topic, *(column[at].item() for column in columns))


def _joined(displays: Sequence[Events]) -> Displays | None:
    parts = [Displays(one.impression_id, one.user_key, one.ts_ms) for one in displays if len(one)]
    return concat_displays(parts) if parts else None


def _short(topic: str) -> str:
    return topic.split(".")[1]
