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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from stream import join_kernels as kernels
from stream.examples import Displays, ExampleRows, concat, concat_displays
from stream.inputs import EventRows, ServedRows, event_json
from stream.join_config import JoinConfig
from stream.join_kernels import CORRECT, DUPLICATE, HOLD, LATE, SETTLE, SHOWN, WAIT, Rules
from stream.low_water import LowWater
from stream.pending_rows import PendingRows
from stream.settled_clicks import SettledClicks
from stream.topics import CLICKS, CONVERSIONS, EXAMPLES, IMPRESSIONS, INPUTS, SERVED
from stream.waiting_events import Events, WaitingEvents
from stream.watermarks import Watermarks

__all__ = ["JoinConfig", "JoinCore", "JoinOutput", "Records", "Reject", "Resume"]

_BY_PLACE = ("keys", "times", "states", "served", "displayed")  # columns of `Rows`
_HOLDING = (SERVED, IMPRESSIONS, CLICKS)  # inputs that hold the watermark back
_EVENTS = (IMPRESSIONS, CLICKS, CONVERSIONS)
_NEVER = int(kernels.NEVER)
_FIRST_SLOTS = 1024  # of the index
_FULL_AT = 0.75  # load of the index
_FIRST_SETTLED = 1024
_HURRIED_SHARE = 1 / 16  # of the pending rows, each time that time is moved forward


class Records(NamedTuple):
    """Where rows stood: M records of one input in the order of their offsets, and how many rows each holds."""

    offsets: NDArray[np.int64]  # (M,)
    rows: NDArray[np.int64]  # (M,)
    produced_ms: NDArray[np.int64]  # (M,) Kafka's time of the record

    @classmethod
    def one(cls, offset: int, rows: int, produced_ms: int = 0) -> Records:
        """A single record."""
        return cls(np.array([offset]), np.array([rows]), np.array([produced_ms]))


@dataclass(frozen=True, slots=True)
class Reject:
    """One event that yields nothing; `payload` is its JSON, so that it can be looked at and sent again."""

    topic: str
    offset: int
    reason: str
    detail: str
    payload: bytes


class Resume(NamedTuple):
    """What a later life needs beside the inputs from the low water on; it travels with the committed offsets.

    examples : the offset of the examples topic from which on records to be read again may have led to something.
    settled : the offset from which on settled rows are still known.
    forgotten_ms : display time of the newest row that is not.
    watermark_ms : of the output.
    """

    examples: int = 0
    settled: int = 0
    forgotten_ms: int = 0
    watermark_ms: int = 0

    @property
    def recalled_from(self) -> int:
        """The offset from which on examples are recalled."""
        return min(self.examples, self.settled)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOutput:
    """What became known since the last poll.

    `counts` are increments. `watermark_ms` is 0 before there is one. `low_water` gives per topic the offset to commit
    together with `examples`, `displays` and `rejects`: everything before it is finished. The examples are the settled
    rows, then corrections, then conversions.
    """

    examples: ExampleRows | None
    displays: Displays | None = None
    rejects: list[Reject] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    watermark_ms: int = 0
    low_water: dict[str, int] = field(default_factory=dict)
    resume: Resume = Resume()


class _Told(NamedTuple):
    """Rows displayed in an earlier life and not settled in it, and the offsets of the examples that told so."""

    impression_id: NDArray[np.uint64]
    offset: NDArray[np.int64]


class _Corrections(NamedTuple):
    """Clicks on rows settled as unclicked: where each came from, and where the example lies that it corrects."""

    clicks: Events
    click_offsets: NDArray[np.int64]
    offsets: NDArray[np.int64]


class JoinCore:
    """The join of one partition. Feed it in any interleaving of the inputs, each input in the order of its offsets.

    Topics are named without their prefix. One step is: feed records; bring what `wanted_examples` asks for; `poll`;
    store the output, with the offsets of its low water, in one go; tell `stored` where the examples lie; bring what
    `wanted_clicks` asks for, and poll again if that yields something.

    A rebuilt core is given the committed offsets (`start_at`), `recall` the partition's examples from
    `Resume.recalled_from` to the end, then the inputs from the committed offsets on; it then yields what is missing and nothing twice.
    Rejects may come again after a rebuild. A record whose offset was seen before is skipped.

    Parameters
    ----------
    salt : of the hashes of impression ids; the output does not depend on it.
    """

    def __init__(self, config: JoinConfig, partition: int, salt: int = 0) -> None:
        self.partition = partition
        self._window_ms = config.ms("click_window_s")
        self._conversion_horizon_ms = config.ms("conversion_horizon_s")
        self._late_horizon_ms = config.ms("late_horizon_s")
        self._display_horizon_ms = config.ms("display_horizon_s")
        self._window_s = config.click_window_s
        self._salt = np.uint64(salt)
        self._watermarks = Watermarks(_HOLDING, config.ms("allowed_lateness_s"), config.ms("idle_timeout_s"))
        self._emitted_watermark_ms = 0
        self._low_water = {topic: LowWater() for topic in INPUTS}
        self._pending = PendingRows()
        self._waiting = WaitingEvents(salt)
        self._rows = _no_rows()
        self._forgotten_ms = -_NEVER
        self._newest_conversion_ms = 0
        self._examples_end = 0
        self._last_settled = 0  # rows of the last output
        self._recalled = 0  # settled rows below this number are of earlier lives
        # where settled rows begin in the examples topic: number of the first of them in a record, its offset
        self._record_starts: list[int] = [0]
        self._record_offsets: list[int] = [0]
        self._told = _Told(np.zeros(0, np.uint64), np.zeros(0, np.int64))

        self._displays: list[Events] = []
        self._settled: list[tuple[NDArray[np.int64], Events | None]] = []  # places, and the clicks if they have any
        self._held_corrections: list[tuple[NDArray[np.int64], Events]] = []
        self._corrections: list[_Corrections] = []
        self._corrected: list[ExampleRows] = []
        self._asking: list[Events] = []
        self._converted: list[ExampleRows] = []
        self._converted_ids: set[int] = set()  # not stored yet
        self._rejects: list[Reject] = []
        self._counts: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def pending_rows(self) -> int:
        """Served rows that are not settled."""
        return int(self._rows.live.sum())

    @property
    def settled_rows(self) -> int:
        """Settled rows whose clicks still count."""
        return int(self._rows.counters[kernels.TAIL] - self._rows.counters[kernels.HEAD])

    @property
    def waiting_events(self) -> int:
        """Events that wait for their served row, display or click."""
        return len(self._waiting) + sum(map(len, self._asking))

    @property
    def bytes(self) -> int:
        """Memory taken."""
        rows = sum(array.nbytes for array in self._rows)
        return rows + self._pending.bytes + self._waiting.bytes + sum(low.bytes for low in self._low_water.values())

    @property
    def id_bytes(self) -> int:
        """The part of `bytes` that ids and dense inputs of pending rows take."""
        return self._pending.id_bytes

    @property
    def watermark_ms(self) -> int:
        """How far time has come, 0 before the first poll that knew."""
        return max(self._watermarks.reached_ms or 0, self._emitted_watermark_ms)

    def ahead(self) -> frozenset[str]:
        """Inputs that have come further than the slowest one: reading on in them only makes rows wait."""
        conversions = frozenset([CONVERSIONS]) if self._newest_conversion_ms > self.watermark_ms else frozenset()
        return self._watermarks.ahead() | conversions

    # ------------------------------------------------------------------------------------------------ earlier lives

    def start_at(self, low_water: dict[str, int], resume: Resume) -> None:
        """Go on from committed offsets: records before them are skipped. Only before `recall` and the first input."""
        self._refuse_late()
        for topic, offset in low_water.items():
            self._low_water[topic].start_at(offset)
        self._forgotten_ms = resume.forgotten_ms or -_NEVER
        self._emitted_watermark_ms = resume.watermark_ms
        self._record_offsets[0] = self._examples_end = resume.recalled_from

    def recall(
        self, examples: ExampleRows, displays: Displays | None, offset: int, watermark_ms: int = 0
    ) -> None:
        """Take in one record of the partition's examples, in their order; only before the first input.

        Its rows are held as settled: their late clicks join, their replayed events change nothing. What was displayed
        is not told again. `watermark_ms` is that of the record; the output's watermark does not fall behind it.
        """
        self._refuse_late()
        self._emitted_watermark_ms = max(self._emitted_watermark_ms, watermark_ms)
        mine = examples.kind != CONVERSION
        keys, times = examples.impression_id[mine], examples.ts_ms[mine]
        self._make_room(settled=len(keys))
        before = int(self._rows.counters[kernels.TAIL])
        kernels.recall(self._rows, self._rules(), keys, times, examples.label[mine] != 0)
        self._note_record(before, offset)
        self._recalled = int(self._rows.counters[kernels.TAIL])
        self._examples_end = offset + 1
        if displays is not None:
            told = np.full(len(displays.impression_id), offset)
            self._told = _Told(*map(np.concatenate, zip(self._told, (displays.impression_id, told), strict=True)))
        if len(self._told.impression_id):
            settled = kernels.look_up(self._rows, self._told.impression_id, self._salt) >= 0
            self._told = _Told(*(column[~settled] for column in self._told))

    def _refuse_late(self) -> None:
        if self._rows.live.any() or len(self._waiting) or any(len(low) for low in self._low_water.values()):
            raise ValueError(
                f"partition {self.partition}: examples were handed over after inputs had been read; some would be "
                "emitted twice. Call start_at() and recall() on a new JoinCore, before its inputs."
            )

    # ------------------------------------------------------------------------------------------------------- inputs

    def served(self, rows: ServedRows, records: Records) -> None:
        """Take in records of the served topic."""
        numbers, fresh = self._start(SERVED, rows.served_ms, records, rows.watermark_ms)
        if not len(numbers):
            return
        keys, served_ms = rows.impression_id[fresh], rows.served_ms[fresh]
        places = self._make_room(pending=len(keys))
        new = kernels.add_served(
            self._rows, self._rules(), self._low_water[SERVED].open, keys, served_ms, numbers, places
        )
        if not new.all():
            self._count("duplicate_served", len(new) - int(np.count_nonzero(new)))
            self._note_repeated(SERVED, numbers[~new], kernels.look_up(self._rows, keys[~new], self._salt))
        self._pending.put(rows, np.flatnonzero(fresh)[new])
        self._wake(keys[new])

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
        numbers, fresh = self._start(topic, rows.ts_ms, records, rows.watermark_ms)
        if not len(numbers):
            return
        produced_ms = np.repeat(records.produced_ms, records.rows)
        columns = (rows.impression_id, rows.ts_ms, rows.user_key, rows.position, rows.value, produced_ms)
        self._apply(topic, Events(*(column[fresh] for column in columns), numbers))

    def _start(
        self, topic: str, ts_ms: NDArray[np.int64], records: Records, promise_ms: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Note records: the numbers of the records of the rows that were not seen before, and which rows those are."""
        low_water = self._low_water[topic]
        known = ~low_water.fresh(records.offsets)
        self._count("redelivered_records", int(np.count_nonzero(known)))
        fresh = np.repeat(~known, records.rows)
        if known.all():
            return np.zeros(0, np.uint32), fresh
        offsets, rows = records.offsets[~known], records.rows[~known]
        numbers = low_water.start(offsets, rows, self._examples_end)
        moved = self._move_watermark(topic, ts_ms[fresh], rows)
        if promise_ms and self._watermarks.promised(topic, promise_ms):
            moved = len(offsets) - 1
        if moved is not None:
            low_water.anchor(int(offsets[moved]), self._examples_end)
        self._count(f"rows_{_short(topic)}", len(numbers))
        return numbers, fresh

    def _move_watermark(self, topic: str, ts_ms: NDArray[np.int64], rows: NDArray[np.int64]) -> int | None:
        """Tell the watermark of the newest event; the place of the record that brought it, if that moved it."""
        if not len(ts_ms):
            return None
        newest = int(np.argmax(ts_ms))
        if topic == CONVERSIONS:
            self._newest_conversion_ms = max(self._newest_conversion_ms, int(ts_ms[newest]))
        if not self._watermarks.seen(topic, int(ts_ms[newest])):
            return None
        return int(np.searchsorted(np.cumsum(rows), newest, side="right"))

    # ------------------------------------------------------------------------------------------------ an event's way

    def _apply(self, topic: str, events: Events) -> None:
        """Apply events of one input, then those that had waited for them."""
        if topic == CONVERSIONS:
            self._asking.append(events)
            return
        open_ = {name: self._low_water[name].open for name in _HOLDING}
        columns = events.impression_id, events.ts_ms, events.record
        if topic == IMPRESSIONS:
            fate, met = kernels.apply_impressions(
                self._rows, self._rules(), open_[SERVED], open_[IMPRESSIONS], *columns
            )
        else:
            self._make_room(settled=len(events))
            fate, met = kernels.apply_clicks(
                self._rows, self._rules(), open_[SERVED], open_[IMPRESSIONS], open_[CLICKS], *columns
            )
            self._clicked(events, fate, met)
        if (shown := fate == SHOWN).any() and topic == IMPRESSIONS:
            self._show(events.take(shown))
        if (again := fate == DUPLICATE).any():
            self._count(f"duplicate_{_short(topic)}", int(np.count_nonzero(again)))
            self._note_repeated(topic, events.record[again], met[again])
        if (late := fate == LATE).any():
            self._reject_late(topic, events.take(late))
        if (wait := fate == WAIT).any():
            waiting = events.take(wait)
            self._wait(topic, waiting, waiting.ts_ms + self._window_ms)
        if (held := fate == HOLD).any():
            self._wait(topic, events.take(held), np.full(int(np.count_nonzero(held)), _NEVER))
        if (woken := (fate == SHOWN) | (fate == SETTLE) | (fate == CORRECT)).any():
            self._wake(events.impression_id[woken])

    def _note_repeated(self, topic: str, records: NDArray[np.uint32], met: NDArray[np.int64]) -> None:
        """Remember of records that met rows settled in an earlier life where those stand: they are recalled again."""
        earlier = met >= kernels.SETTLED
        earlier[earlier] = self._numbers(met[earlier]) < self._recalled
        if earlier.any():
            self._low_water[topic].led_to(records[earlier], self._example_offsets(self._numbers(met[earlier])))

    def _numbers(self, met: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of settled rows, which never wrap round, from references."""
        head = int(self._rows.counters[kernels.HEAD])
        return head + ((met - kernels.SETTLED - head) & (kernels.SETTLED - 1))

    def _example_offsets(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        at = np.searchsorted(np.array(self._record_starts), numbers, side="right") - 1
        offsets: NDArray[np.int64] = np.array(self._record_offsets)[at]
        return offsets

    def _show(self, displays: Events) -> None:
        if len(self._told.impression_id):
            _, mine, of_told = np.intersect1d(displays.impression_id, self._told.impression_id, return_indices=True)
            self._low_water[IMPRESSIONS].led_to(displays.record[mine], self._told.offset[of_told])
            self._told = _Told(*(np.delete(column, of_told) for column in self._told))
            displays = displays.take(np.delete(np.arange(len(displays)), mine))
        self._displays.append(displays)

    def _clicked(self, clicks: Events, fate: NDArray[np.uint8], met: NDArray[np.int64]) -> None:
        if (settled := fate == SETTLE).any():
            self._count("settled_clicked", int(np.count_nonzero(settled)))
            self._settled.append((met[settled], clicks.take(settled)))
        if (corrected := fate == CORRECT).any():
            self._correct(clicks.take(corrected), met[corrected])

    def _correct(self, clicks: Events, met: NDArray[np.int64]) -> None:
        """Correct settled rows: from their columns if this very step settled them, else from the examples topic."""
        self._count("corrections", len(clicks))
        numbers = self._numbers(met)
        tail = int(self._rows.counters[kernels.TAIL])
        first_unstored = tail - sum(len(places) for places, _ in self._settled)
        here = numbers >= first_unstored
        if here.any():
            places = np.concatenate([places for places, _ in self._settled])
            self._held_corrections.append((places[numbers[here] - first_unstored], clicks.take(here)))
        if not here.all():
            gone = clicks.take(~here)
            click_offsets = self._low_water[CLICKS].offsets_of(gone.record)
            self._corrections.append(_Corrections(gone, click_offsets, self._example_offsets(numbers[~here])))

    def _wait(self, topic: str, events: Events, due_ms: NDArray[np.int64]) -> None:
        added = self._waiting.add(_EVENTS.index(topic), events, due_ms)
        if not added.all():
            self._count(f"duplicate_{_short(topic)}", len(added) - int(np.count_nonzero(added)))
            self._low_water[topic].finish(events.record[~added])

    def _wake(self, keys: NDArray[np.uint64]) -> None:
        """Apply again what waited for these rows, each input in the order in which its events came."""
        for which, events in self._waiting.take(keys):
            self._apply(_EVENTS[which], events)

    def _reject_late(self, topic: str, events: Events) -> None:
        references = kernels.look_up(self._rows, events.impression_id, self._salt)
        for at, reference in enumerate(references.tolist()):
            since = "served" if topic == IMPRESSIONS else "displayed"
            known_ms = self._time_of(reference)
            ts_ms = int(events.ts_ms[at])
            if topic == IMPRESSIONS and ts_ms <= self._forgotten_ms:
                detail = (
                    f"displayed at {ts_ms}, and rows displayed up to {self._forgotten_ms} are no longer known: it may "
                    "have been joined before"
                )
            else:
                detail = f"{'displayed' if topic == IMPRESSIONS else 'clicked'} {ts_ms - known_ms} ms after it was {since}"
            self._reject(topic, events, at, "late", detail)
        self._low_water[topic].finish(events.record)

    def _reject(self, topic: str, events: Events, at: int, reason: str, detail: str) -> None:
        """Put one event among the rejects, while its record is still unfinished."""
        offset = int(self._low_water[topic].offsets_of(events.record[at : at + 1])[0])
        self._rejects.append(Reject(topic, offset, reason, detail, _json(topic, events, at)))

    def _time_of(self, reference: int) -> int:
        """When a pending row was served or displayed, or a settled one displayed; 0 for none."""
        if reference < 0:
            return 0
        if reference < kernels.SETTLED:
            return int(self._rows.times[reference])
        return int(self._rows.settled_times[(reference - kernels.SETTLED) & (len(self._rows.settled_times) - 1)])

    # ----------------------------------------------------------------------------------------- what the shell brings

    def wanted_examples(self) -> NDArray[np.int64]:
        """Offsets of the examples records that hold what late clicks correct, each once, ascending."""
        offsets = [one.offsets for one in self._corrections]
        return np.unique(np.concatenate(offsets)) if offsets else np.zeros(0, np.int64)

    def examples_found(self, records: dict[int, ExampleRows]) -> None:
        """Answer `wanted_examples`; what is missing is rejected as late."""
        corrections, self._corrections = self._corrections, []
        for clicks, click_offsets, offsets in corrections:
            for at, offset in enumerate(offsets.tolist()):
                rows = records.get(offset)
                key = clicks.impression_id[at]
                found = np.flatnonzero((rows.impression_id == key) & (rows.kind == SETTLED)) if rows is not None else ()
                if rows is None or not len(found):
                    self._count("corrections", -1)
                    detail = f"{EXAMPLES}[{self.partition}] no longer holds the row that it corrects (offset {offset})"
                    payload = _json(CLICKS, clicks, at)
                    self._rejects.append(Reject(CLICKS, int(click_offsets[at]), "late", detail, payload))
                else:
                    self._corrected.append(self._correction(rows.take(found[:1]), clicks.take(np.array([at]))))

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
        keys = [events.impression_id for events in self._asking]
        return np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.uint64)

    def clicks_found(self, clicks: SettledClicks) -> bool:
        """Answer `wanted_clicks` with those of them that are stored. Return whether there is something to poll."""
        asking, self._asking = Events.joined(self._asking), []
        asking = asking.take(np.argsort(self._low_water[CONVERSIONS].order(asking.record), kind="stable"))
        row_of = {key: at for at, key in enumerate(clicks.examples.impression_id.tolist())}
        answered = np.array([key in row_of for key in asking.impression_id.tolist()], bool)
        left = asking.take(~answered)
        self._wait(CONVERSIONS, left, left.ts_ms + self._window_ms)
        before = len(self._converted) + len(self._rejects)
        for at in np.flatnonzero(answered).tolist():
            self._convert(asking, at, clicks, row_of[int(asking.impression_id[at])])
        self._low_water[CONVERSIONS].finish(asking.record[answered])
        return len(self._converted) + len(self._rejects) > before or self._waiting.is_due(self.watermark_ms)

    def _convert(self, events: Events, at: int, clicks: SettledClicks, row: int) -> None:
        key, ts_ms = int(events.impression_id[at]), int(events.ts_ms[at])
        click = clicks.examples.take(np.array([row]))
        display_ms = int(click.ts_ms[0])
        click_ms = display_ms + int(click.delay_ms[0])
        if clicks.converted[row] or key in self._converted_ids:
            self._count("duplicate_conversions", 1)
        elif ts_ms > click_ms + self._conversion_horizon_ms:
            self._reject(CONVERSIONS, events, at, "late", f"converted {ts_ms - click_ms} ms after the click")
        else:
            self._count("converted", 1)
            self._converted_ids.add(key)
            self._converted.append(
                click.with_outcome(
                    kind=CONVERSION,
                    label=1,
                    known_ms=np.array([max(ts_ms, click_ms)]),
                    delay_ms=np.array([max(ts_ms - display_ms, 0)]),
                    value=events.value[at : at + 1],
                    click_produced_ms=np.zeros(1, np.int64),
                )
            )

    # ---------------------------------------------------------------------------------------------------------- poll

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """Settle what the watermark has passed and return what became known since the last poll.

        `now_ms`, the wall clock, is given in live mode only: idle inputs then stop holding the watermark back.
        """
        if self._corrections:
            raise ValueError(
                f"partition {self.partition}: polled while clicks wait for the examples that they correct; they would "
                "be lost. Call examples_found() with what wanted_examples() asks for before."
            )
        watermark_ms = self._watermarks.poll(now_ms)
        if watermark_ms is not None:
            self._pass_time(watermark_ms)
        displays, rejects, counts = self._displays, self._rejects, dict(self._counts)
        examples = self._take_examples()
        self._displays, self._rejects, self._counts = [], [], Counter()
        low_water, resume = self._mark()
        return JoinOutput(
            examples=examples,
            displays=_joined(displays),
            rejects=rejects,
            counts=counts,
            watermark_ms=resume.watermark_ms,
            low_water=low_water,
            resume=resume,
        )

    def stored(self, offsets: Sequence[int], first_rows: Sequence[int]) -> None:
        """Tell where the last output's examples lie: the offset of each record, and the row that it begins with."""
        count = self._last_settled
        first = int(self._rows.counters[kernels.TAIL]) - count
        for offset, row in zip(offsets, first_rows, strict=True):
            if row < count:
                self._note_record(first + row, offset)
        if offsets:
            self._examples_end = offsets[-1] + 1
        self._converted_ids.clear()

    def relieve(self, over_bytes: int) -> None:
        """Give up about so much memory, see above; the next poll settles what is hurried. Only between steps."""
        rows = self._rows
        a_row = rows.settled_keys.itemsize + rows.settled_times.itemsize + rows.settled_states.itemsize
        a_row += int(rows.index.itemsize / _FULL_AT)
        forgotten = self._forget(self.watermark_ms - self._window_ms, 1 + over_bytes // a_row, passing=True)
        self._count("forgotten_rows", forgotten)
        if forgotten * a_row < over_bytes and self.pending_rows:
            due = kernels.times_due(self._rows, self._rules())
            nth = int(len(due) * _HURRIED_SHARE)
            self._count("hurried_rows", nth + 1)
            self._watermarks.hurry(int(np.partition(due, nth)[nth]) + 1)

    def _pass_time(self, watermark_ms: int) -> None:
        """Do what is due: an event may still come *at* the watermark, so a time is passed only when it is before."""
        blocks = np.flatnonzero(self._rows.due[: self._pending.block_count] < watermark_ms)
        if len(blocks):
            shown, hidden = kernels.due_places(self._rows, self._rules(), blocks, watermark_ms)
            self._settle_unclicked(shown)
            kernels.drop_undisplayed(self._rows, self._rules(), self._low_water[SERVED].open, hidden)
            self._count("undisplayed", len(hidden))
            self._pending.free(self._rows.live, hidden)
        for which, events in self._waiting.take_due(watermark_ms):
            self._give_up(_EVENTS[which], events)
        self._forget(watermark_ms - self._late_horizon_ms, _NEVER)
        self._shrink()

    def _settle_unclicked(self, places: NDArray[np.int64]) -> None:
        if not len(places):
            return
        places = places[np.argsort(self._rows.times[places], kind="stable")]
        self._make_room(settled=len(places))
        open_ = self._low_water[SERVED].open, self._low_water[IMPRESSIONS].open
        kernels.settle_unclicked(self._rows, self._rules(), *open_, places)
        self._count("settled_unclicked", len(places))
        self._settled.append((places, None))
        self._wake(self._rows.keys[places])

    def _give_up(self, topic: str, events: Events) -> None:
        references = kernels.look_up(self._rows, events.impression_id, self._salt)
        waited = f"within {self._window_s:g} s of event time"
        for at, reference in enumerate(references.tolist()):
            if reference < 0:
                self._reject(topic, events, at, "unknown_impression", f"no served row came {waited}")
            elif reference < kernels.SETTLED and self._rows.states[reference] == kernels.SERVED:
                self._reject(topic, events, at, "unknown_impression", f"served, but no display came {waited}")
            else:
                self._reject(topic, events, at, "no_click", f"displayed, but no click came {waited}")
        self._low_water[topic].finish(events.record)

    def _forget(self, before_ms: int, most: int, *, passing: bool = False) -> int:
        count, newest_ms = kernels.forget(self._rows, self._rules(), before_ms, most, passing)
        if count:
            self._forgotten_ms = max(self._forgotten_ms, int(newest_ms))
            head = int(self._rows.counters[kernels.HEAD])
            gone = int(np.searchsorted(np.array(self._record_starts), head, side="right")) - 1
            del self._record_starts[:gone], self._record_offsets[:gone]
        return int(count)

    def _mark(self) -> tuple[dict[str, int], Resume]:
        marks = {topic: mark for topic, low in self._low_water.items() if (mark := low.mark(self._examples_end))}
        settled = self._record_offsets[0] if self.settled_rows else self._examples_end
        examples = min([mark.examples_end for mark in marks.values()], default=self._examples_end)
        examples = min(examples, int(self._told.offset.min(initial=examples)))  # those are to be read again, too
        forgotten_ms = self._forgotten_ms if self._forgotten_ms > 0 else 0
        resume = Resume(examples, settled, forgotten_ms, self.watermark_ms)
        return {topic: mark.offset for topic, mark in marks.items()}, resume

    # ------------------------------------------------------------------------------------------------ rows of output

    def _take_examples(self) -> ExampleRows | None:
        """Everything that settled, was corrected or converted, in this order; the settled rows' places are given up."""
        settled, held, self._settled, self._held_corrections = self._settled, self._held_corrections, [], []
        parts = [rows for part in settled if (rows := self._outcomes(*part)) is not None]
        self._last_settled = sum(map(len, parts))
        for places, clicks in held:
            parts.append(self._correction(self._unclicked_rows(places), clicks))
        for places, _ in settled:
            kernels.release(self._rows, places)
            self._pending.free(self._rows.live, places)
        parts += [*self._corrected, *self._converted]
        self._corrected, self._converted = [], []
        return concat(parts) if parts else None

    def _outcomes(self, places: NDArray[np.int64], clicks: Events | None) -> ExampleRows | None:
        if clicks is None:
            return self._unclicked_rows(places)
        rows = self._unclicked_rows(places)
        click_ms = np.maximum(clicks.ts_ms, rows.ts_ms)
        return rows.with_outcome(
            kind=SETTLED,
            label=1,
            known_ms=click_ms,
            delay_ms=click_ms - rows.ts_ms,
            click_produced_ms=clicks.produced_ms,
        )

    def _unclicked_rows(self, places: NDArray[np.int64]) -> ExampleRows:
        display_ms = self._rows.times[places]
        count = len(places)
        return ExampleRows(
            kind=np.full(count, SETTLED, np.uint8),
            label=np.zeros(count, np.uint8),
            impression_id=self._rows.keys[places],
            ts_ms=display_ms,
            known_ms=display_ms + self._window_ms,
            delay_ms=np.full(count, -1, np.int64),
            value=np.zeros(count, np.float32),
            click_produced_ms=np.zeros(count, np.int64),
            **self._pending.columns(places),
        )

    # -------------------------------------------------------------------------------------------------------- memory

    def _rules(self) -> Rules:
        return Rules(
            self._window_ms, self._display_horizon_ms, self._late_horizon_ms, self._forgotten_ms, self._salt
        )

    def _note_record(self, first_settled: int, offset: int) -> None:
        if self._record_starts[-1] == first_settled:
            self._record_offsets[-1] = offset
        else:
            self._record_starts.append(first_settled)
            self._record_offsets.append(offset)

    def _make_room(self, *, pending: int = 0, settled: int = 0) -> NDArray[np.int64]:
        """Have room for so many more rows; the places of the pending ones."""
        rows = self._rows
        places = self._pending.next_places(pending)
        blocks = int(places.max(initial=-1)) // kernels.BLOCK + 1
        if blocks > len(rows.live):
            rows = _with_blocks(rows, max(blocks, len(rows.live) + len(rows.live) // 8))
        wanted = int(rows.counters[kernels.TAIL] - rows.counters[kernels.HEAD]) + settled
        if wanted > len(rows.settled_keys):
            rows = _with_settled(rows, wanted)
        if int(rows.counters[kernels.COUNT]) + pending + settled > len(rows.index) * _FULL_AT:
            rows = rows._replace(index=_spread(rows.index, int(rows.counters[kernels.COUNT]) + pending + settled))
        self._rows = rows
        return places

    def _shrink(self) -> None:
        """Give memory back once rows that are gone took most of it."""
        rows = self._rows
        self._pending.trim()
        if 2 * self._pending.block_count < len(rows.live):
            rows = _with_blocks(rows, self._pending.block_count)
        if 4 * self.settled_rows < len(rows.settled_keys) and len(rows.settled_keys) > _FIRST_SETTLED:
            rows = _with_settled(rows, self.settled_rows + 1)
        if 4 * int(rows.counters[kernels.COUNT]) < len(rows.index) * _FULL_AT and len(rows.index) > _FIRST_SLOTS:
            rows = rows._replace(index=_spread(rows.index, int(rows.counters[kernels.COUNT])))
        self._rows = rows

    def _count(self, name: str, count: int) -> None:
        if count:
            self._counts[name] += count


def _json(topic: str, events: Events, at: int) -> bytes:
    """One event as a client would send it."""
    columns = (events.impression_id, events.ts_ms, events.user_key, events.position, events.value)
    return event_json(topic, *(column[at].item() for column in columns))


def _no_rows() -> kernels.Rows:
    return kernels.Rows(
        index=np.zeros(_FIRST_SLOTS, np.uint64),
        counters=np.zeros(3, np.int64),
        keys=np.zeros(0, np.uint64),
        times=np.zeros(0, np.int64),
        states=np.zeros(0, np.uint8),
        served=np.zeros(0, np.uint32),
        displayed=np.zeros(0, np.uint32),
        live=np.zeros(0, np.int32),
        due=np.zeros(0, np.int64),
        settled_keys=np.zeros(_FIRST_SETTLED, np.uint64),
        settled_times=np.zeros(_FIRST_SETTLED, np.int64),
        settled_states=np.zeros(_FIRST_SETTLED, np.uint8),
    )


def _with_blocks(rows: kernels.Rows, blocks: int) -> kernels.Rows:
    """Room for so many blocks of pending rows, more or fewer than before."""
    changed = {name: _resized(getattr(rows, name), blocks * kernels.BLOCK) for name in _BY_PLACE}
    due = _resized(rows.due, blocks, kernels.NEVER)
    return rows._replace(**changed, live=_resized(rows.live, blocks), due=due)


def _resized(column: NDArray[Any], size: int, fill: int = 0) -> NDArray[Any]:
    kept = column[:size].copy() if size < len(column) else column
    return np.concatenate((kept, np.full(size - len(kept), fill, column.dtype)))


def _with_settled(rows: kernels.Rows, count: int) -> kernels.Rows:
    """A ring for at least so many settled rows."""
    size = _FIRST_SETTLED
    while size < count:
        size *= 2
    numbers = np.arange(int(rows.counters[kernels.HEAD]), int(rows.counters[kernels.TAIL]))
    moved = {}
    for name in ("settled_keys", "settled_times", "settled_states"):
        old = getattr(rows, name)
        moved[name] = np.zeros(size, old.dtype)
        moved[name][numbers & (size - 1)] = old[numbers & (len(old) - 1)]
    return rows._replace(**moved)


def _spread(index: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The index with room for so many references."""
    size = _FIRST_SLOTS
    while count > size * _FULL_AT:
        size *= 2
    bigger = np.zeros(size, np.uint64)
    kernels.spread(index, bigger)
    return bigger


def _joined(displays: Sequence[Events]) -> Displays | None:
    parts = [Displays(one.impression_id, one.user_key, one.ts_ms) for one in displays if len(one)]
    return concat_displays(parts) if parts else None


def _short(topic: str) -> str:
    return topic.split(".")[1]
