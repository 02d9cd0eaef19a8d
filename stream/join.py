"""The join of one partition: served rows with their impressions, clicks and conversions, in event time.

Pure: no clock, no broker, no randomness. What comes out depends on what came in, not on how the inputs interleaved,
as long as no event comes later than the allowed lateness. ("What was shown is what is learned": the columns of an
example are those of the served row; cf. Ananthanarayanan et al., "Photon", SIGMOD 2013, for joining in event time.)

- A served row is pending until its impression displays it; rows not displayed within `display_horizon_s` are dropped.
- A displayed row yields one exposure, and nothing of it waits for a label. Its first click up to `click_horizon_s`
  after the display yields one click whenever it comes; each conversion of that click (each distinct time) up to
  `conversion_horizon_s` after the click yields one conversion.
- **Clicks that lag hold exposures back**, or they would teach that nobody clicks: an exposure goes out once every input
  (served, impressions, clicks) has come to its display time, less `display_lead_s`. An idle input holds nothing back
  (live only). A click lets its own row through, so no click waits. Conversions hold nothing back: what they wait for
  (the click) comes earlier in event time, and is kept long enough.
- An event that misses its row waits until the watermark passes its time by `display_horizon_s`, then is rejected:
  ``unknown_impression``, or ``no_click`` for a conversion of a row that was displayed. One beyond a horizon is rejected
  as ``late`` while its row is known. Of equal events the first counts.

**What is held.** Pending rows with all their columns. Of exposed ones only the key, the time and whether they were
clicked, for `click_horizon_s`: their columns stand in the examples topic, from where the shell brings those of late
clicks (`JoinOutput.late`), and clicks in a store, from where it brings what conversions ask for (`wanted_clicks`).

**At the memory bound** (the shell tells how much is over, `shed_memory`): exposed rows beyond the display horizon are
forgotten, oldest first, and their clicks are rejected (``forgotten_rows``); when that is not enough, time is moved
forward until enough pending rows are exposed or dropped (``early_rows``). No row is exposed twice: a display as old as
the newest row that was forgotten is ``late``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream import join_kernels as kernels
from stream.commit_tracker import CommitTracker
from stream.conversions import Conversions
from stream.examples import ExampleRows, concat
from stream.inputs import EventRows, ServedRows
from stream.join_config import JoinConfig
from stream.join_kernels import CLICK, DISPLAY, DUPLICATE, LATE, NEVER, WAIT
from stream.join_output import JoinOutput, Records, Resume
from stream.join_rejects import Reject, beyond_horizon, event_payload, forgotten_display, waited_in_vain
from stream.join_state import JoinState
from stream.late_clicks import LateClicks, click_rows
from stream.stored_clicks import StoredClicks
from stream.topics import CLICKS, CONVERSIONS, IMPRESSIONS, INPUTS, SERVED
from stream.waiting_events import Events, WaitingEvents
from stream.watermarks import Watermarks

_HOLDING = (SERVED, IMPRESSIONS, CLICKS)  # inputs that hold the watermark back
_EVENTS = (IMPRESSIONS, CLICKS, CONVERSIONS)
_EARLY_SHARE = 1 / 16  # of the pending rows, each time that time is moved forward


class _Clicked(NamedTuple):
    """Clicks on pending rows, and the rows' places."""

    clicks: Events
    places: NDArray[np.int64]


class JoinCore:
    """The join of one partition. Feed it in any interleaving of the inputs, each input in the order of its offsets.

    Topics are named without their prefix. One step is: feed records; `poll`; give the output its late clicks
    (`stream.late_clicks`); store it with its offsets in one go; tell `stored` where the examples lie; bring what
    `wanted_clicks` asks for, and poll again if that yields something.

    A rebuilt core is given the committed offsets (`start_at`), the partition's examples from `Resume.examples` to the
    end (`restore`), then the inputs from the committed offsets on; it then yields what is missing and nothing twice.
    Rejects may come again after a rebuild, and be told of events older than what is still known. A record whose offset
    was seen before is skipped.

    Parameters
    ----------
    salt : of the hashes of impression ids; the output does not depend on it.
    """

    def __init__(self, config: JoinConfig, partition: int, salt: int = 0) -> None:
        self.partition = partition
        self._horizon_s = config.display_horizon_s
        self._horizon_ms = config.ms("display_horizon_s")
        self._lead_ms = config.ms("allowed_lateness_s") + config.ms("display_lead_s")
        self._watermarks = Watermarks(_HOLDING, config.ms("allowed_lateness_s"), config.ms("idle_timeout_s"))
        self._commits = {topic: CommitTracker() for topic in INPUTS}
        self._state = JoinState(config, salt)
        self._waiting = WaitingEvents(salt)
        self._conversions = Conversions(config.ms("conversion_horizon_s"))
        self._newest_conversion_ms = 0
        self._examples_end = 0  # the offset of the next examples record
        self._last_exposures = 0  # of the last output
        self._emitted_watermark_ms = 0  # of earlier lives

        self._clicked: list[_Clicked] = []
        self._late: list[LateClicks] = []
        self._converted: list[ExampleRows] = []
        self._rejects: list[Reject] = []
        self._counts: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def pending_rows(self) -> int:
        """Served rows that are not exposed."""
        return self._state.pending

    @property
    def waiting_displays(self) -> int:
        """Of them, those that were displayed and wait for the slowest input."""
        return self._state.waiting_displays

    @property
    def exposed_rows(self) -> int:
        """Exposed rows whose clicks still count."""
        return self._state.exposed

    @property
    def waiting_events(self) -> int:
        """Events that wait for their served row, display or click."""
        return len(self._waiting) + len(self._conversions)

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self._state.bytes + self._waiting.bytes + sum(commits.bytes for commits in self._commits.values())

    @property
    def id_bytes(self) -> int:
        """The part of `bytes` that ids and dense inputs of pending rows take."""
        return self._state.id_bytes

    @property
    def watermark_ms(self) -> int:
        """How far time has come by the last poll, 0 before the first that knew."""
        return max(self._watermarks.reached_ms or 0, self._emitted_watermark_ms)

    def ahead(self, by_ms: int = 0) -> frozenset[str]:
        """Inputs ahead of the slowest by more than ``by_ms``: reading on in them only makes rows wait.

        Conversions, which wait in little memory and may be all that still comes, only where ``by_ms`` is 0.
        """
        waits = not by_ms and self._newest_conversion_ms > self.watermark_ms
        return self._watermarks.ahead(by_ms) | (frozenset([CONVERSIONS]) if waits else frozenset())

    # ------------------------------------------------------------------------------------------------ earlier lives

    def start_at(self, offsets: Mapping[str, int], resume: Resume) -> None:
        """Go on from committed offsets: records before them are skipped. Only before `restore` and the first input."""
        self._refuse_late()
        for topic, offset in offsets.items():
            self._commits[topic].start_at(offset)
        if resume.forgotten_ms:
            self._state.forgotten_ms = resume.forgotten_ms
        self._emitted_watermark_ms = resume.watermark_ms
        self._examples_end = resume.examples
        self._state.note_record(0, resume.examples)

    def restore(self, examples: ExampleRows, offset: int, watermark_ms: int = 0) -> None:
        """Take in one record of the partition's examples, in their order; only before the first input.

        Late clicks on its exposures join, their replayed events change nothing. `watermark_ms` is that of the record;
        the output's watermark does not fall behind it.
        """
        self._refuse_late()
        self._emitted_watermark_ms = max(self._emitted_watermark_ms, watermark_ms)
        self._state.restore(examples, offset)
        self._examples_end = offset + 1

    def _refuse_late(self) -> None:
        if self._state.pending or len(self._waiting) or any(len(one) for one in self._commits.values()):
            raise ValueError(
                f"partition {self.partition}: examples were handed over after inputs had been read; some would be "
                "emitted twice. Call start_at() and restore() on a new JoinCore, before its inputs."
            )

    # ------------------------------------------------------------------------------------------------------- inputs

    def served(self, rows: ServedRows, records: Records) -> None:
        """Take in records of the served topic."""
        numbers, fresh = self._start(SERVED, rows.served_ms, records)
        new = self._state.add(rows, fresh, numbers, self._commits[SERVED].open)
        self._count("duplicate_served", len(new) - int(np.count_nonzero(new)))
        self._release_waiting(rows.impression_id[fresh[new]])

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
        commits = self._commits[topic]
        known = commits.seen(records.offsets)
        self._count("redelivered_records", int(np.count_nonzero(known)))
        if known.all():
            return np.zeros(0, np.uint32), np.zeros(0, np.intp)
        fresh = np.flatnonzero(np.repeat(~known, records.rows))
        new = Records(*(column[~known] for column in records))
        numbers = commits.start(new.offsets, new.rows)
        moved = self._move_watermark(topic, ts_ms[fresh], new)
        if moved is not None:
            commits.pin(int(new.offsets[moved]))
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
            if self._watermarks.seen(topic, newest_ms, int(np.partition(ts_ms, len(ts_ms) // 2)[len(ts_ms) // 2])):
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
        apply = self._state.display if topic == IMPRESSIONS else self._state.click
        outcomes, references = apply(events, self._commits[topic].open)
        for outcome in np.unique(outcomes).tolist():
            which = np.flatnonzero(outcomes == outcome)
            self._follow(topic, outcome, events.take(which), references[which])
        self._release_waiting(events.impression_id[(outcomes == DISPLAY) | (outcomes == CLICK)])

    def _follow(self, topic: str, outcome: int, events: Events, references: NDArray[np.int64]) -> None:
        """Do what follows from what became of events. A display waits in the state until it may be exposed."""
        if outcome == DUPLICATE:
            self._count(f"duplicate_{_short(topic)}", len(events))
        elif outcome == WAIT:
            self._wait(topic, events)
        elif outcome == LATE:
            self._reject_late(topic, events, references)
        elif outcome == CLICK:
            self._click(events, references)

    def _click(self, clicks: Events, references: NDArray[np.int64]) -> None:
        """Click rows: pending ones are exposed by the next poll, the columns of others are in the log."""
        exposed = references >= kernels.EXPOSED
        if exposed.any():
            late = clicks.take(exposed)
            self._late.append(
                LateClicks(
                    late, self._commits[CLICKS].offsets_of(late.record), *self._state.in_log(references[exposed])
                )
            )
        if not exposed.all():
            self._count("clicks", int(np.count_nonzero(~exposed)))
            self._clicked.append(_Clicked(clicks.take(~exposed), references[~exposed]))

    def _wait(self, topic: str, events: Events) -> None:
        added = self._waiting.add(_EVENTS.index(topic), events, events.ts_ms + self._horizon_ms)
        self._count(f"duplicate_{_short(topic)}", len(added) - int(np.count_nonzero(added)))
        self._commits[topic].finish(events.record[~added])

    def _release_waiting(self, keys: NDArray[np.uint64]) -> None:
        """Apply again what waited for these rows, each input in the order in which its events came."""
        for which, events in self._waiting.take(keys):
            self._apply(_EVENTS[which], events)

    def _reject_late(self, topic: str, events: Events, references: NDArray[np.int64]) -> None:
        for at, reference in enumerate(references.tolist()):
            ts_ms, after_ms = int(events.ts_ms[at]), int(events.ts_ms[at]) - self._state.time_ms(reference)
            if topic == CLICKS or (reference >= 0 and after_ms > self._horizon_ms):
                detail = beyond_horizon(topic == IMPRESSIONS, after_ms)
            else:
                detail = forgotten_display(ts_ms, self._state.forgotten_ms)
            self._reject(topic, events, at, "late", detail)
        self._commits[topic].finish(events.record)

    def _reject(self, topic: str, events: Events, at: int, reason: str, detail: str) -> None:
        """Put one event among the rejects, while its record is still unfinished."""
        offset = int(self._commits[topic].offsets_of(events.record[at : at + 1])[0])
        self._rejects.append(Reject(topic, offset, reason, detail, event_payload(topic, events, at)))

    # -------------------------------------------------------------------------------------------------- conversions

    def wanted_clicks(self) -> NDArray[np.uint64]:
        """Impression ids whose clicks conversions ask for, each once; only after `stored`.

        A conversion asks when it comes, and again when its row is displayed or clicked.
        """
        return self._conversions.wanted()

    def clicks_found(self, clicks: StoredClicks) -> bool:
        """Answer `wanted_clicks` with those of them that are stored. Return whether there is something to poll."""
        commits = self._commits[CONVERSIONS]
        answer = self._conversions.answer(clicks, np.uint32(commits.open.base))
        if answer is None:
            return False
        self._count("duplicate_conversions", answer.repeated)
        for at, detail in answer.late.items():
            self._reject(CONVERSIONS, answer.events, at, "late", detail)
        commits.finish(answer.events.record[~answer.unknown])
        if answer.examples is not None:
            self._count("conversions", len(answer.examples))
            self._converted.append(answer.examples)
        self._wait(CONVERSIONS, answer.events.take(answer.unknown))
        return bool(self._converted or answer.late) or self._waiting.is_due(self.watermark_ms)

    # ---------------------------------------------------------------------------------------------------------- poll

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """Expose what may go out and return what became known since the last poll.

        `now_ms`, the wall clock, is given in live mode only: idle inputs then stop holding the watermark back.
        """
        watermark_ms = self._watermarks.poll(now_ms)
        examples = self._take_examples(-int(NEVER) if watermark_ms is None else watermark_ms + self._lead_ms)
        if watermark_ms is not None:
            self._pass_time(watermark_ms)
        late, self._late = self._late, []
        rejects, self._rejects = self._rejects, []
        counts, self._counts = dict(self._counts), Counter()
        return JoinOutput(
            examples=examples,
            late=LateClicks.joined(late) if late else None,
            rejects=rejects,
            counts=counts,
            watermark_ms=self.watermark_ms,
            offsets={topic: at for topic, one in self._commits.items() if (at := one.to_commit()) is not None},
            resume=Resume(
                examples=self._state.first_record(self._examples_end, self._last_exposures),
                forgotten_ms=max(self._state.forgotten_ms, 0),
                watermark_ms=self.watermark_ms,
            ),
        )

    def stored(self, offsets: Sequence[int], first_rows: Sequence[int]) -> None:
        """Tell where the last output's examples lie: the offset of each record, and the row that it begins with."""
        first_number = self._state.next_number - self._last_exposures
        for offset, row in zip(offsets, first_rows, strict=True):
            if row < self._last_exposures:
                self._state.note_record(first_number + row, offset)
        if offsets:
            self._examples_end = offsets[-1] + 1

    def shed_memory(self, over_bytes: int) -> None:
        """Give up about so much memory, see above; the next poll tells what became of it. Only between steps."""
        wanted = 1 + over_bytes // self._state.exposed_row_bytes
        forgotten = self._state.shed(self.watermark_ms, wanted)
        self._count("forgotten_rows", forgotten)
        if forgotten < wanted and self._state.pending:
            due_ms, rows = self._state.nth_due_ms(_EARLY_SHARE, self._lead_ms)
            self._count("early_rows", rows)
            self._watermarks.advance_to(due_ms + 1)

    def _take_examples(self, until_ms: int) -> ExampleRows | None:
        """The exposures of displays up to ``until_ms`` and of clicked rows, the latter's clicks, and conversions."""
        clicked, converted = self._clicked, self._converted
        self._clicked, self._converted, self._last_exposures = [], [], 0
        places = np.concatenate([one.places for one in clicked]) if clicked else np.zeros(0, np.int64)
        exposed = self._state.expose(until_ms, places, self._commits[SERVED].open, self._commits[IMPRESSIONS].open)
        parts = converted
        if exposed is not None:
            exposures, of_clicked = exposed
            self._last_exposures = len(exposures)
            self._count("exposures", len(exposures))
            parts = [exposures, *converted]
            if clicked:
                clicks = Events.joined([one.clicks for one in clicked])
                parts.insert(1, click_rows(exposures.take(of_clicked), clicks))
        return concat(parts) if parts else None

    def _pass_time(self, watermark_ms: int) -> None:
        """Do what is due: an event may still come *at* the watermark, so a time is passed only when it is before."""
        self._count("undisplayed", self._state.drop_undisplayed(watermark_ms, self._commits[SERVED].open))
        for which, events in self._waiting.take_due(watermark_ms):
            topic = _EVENTS[which]
            for at, reference in enumerate(self._state.look_up(events.impression_id).tolist()):
                displayed = self._state.is_displayed(reference)
                self._reject(topic, events, at, *waited_in_vain(reference >= 0, displayed, self._horizon_s))
            self._commits[topic].finish(events.record)
        self._state.expire(watermark_ms)

    def _count(self, name: str, count: int) -> None:
        if count:
            self._counts[name] += count


def _short(topic: str) -> str:
    return topic.split(".")[1]
