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
  ``unknown_impression``, ``undisplayed`` where the row was dropped, or ``no_click`` for a conversion of a row that was
  displayed. One beyond a horizon is rejected as ``late`` while its row is known. Of equal events the first counts.
- An event of another user than its served row's is rejected (``wrong_user``), and at once one that would wait in a
  partition where its user has no rows (``wrong_partition``). What is rejected when it comes moves no time.

**What is in memory.** Pending rows with all their columns. Of exposed ones only the key, the time and whether they were
clicked, for `click_horizon_s`: their columns stand in the examples topic, from where the shell brings those of late
clicks (`JoinOutput.late`), and clicks in a store, from where it brings what conversions ask for (`wanted_clicks`).

**At the memory bound** (the shell says how much is over, `shed_memory`): exposed rows beyond the display horizon are
forgotten, oldest first, and their clicks are rejected (``forgotten_rows``); when that is not enough, time is moved
forward until enough pending rows are exposed or dropped (``early_rows``). A display as old as a forgotten row is late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.clicks.stored_clicks import StoredClicks
from stream.join.config import JoinConfig
from stream.join.events import JoinEvents, short
from stream.join.inputs import Arrived, JoinInputs
from stream.join.output import JoinOutput, Records, Resume
from stream.join.rejects import Home
from stream.join.state.kernels import NEVER
from stream.join.state.state import JoinState
from stream.join.state.waiting import Events
from stream.records.events import EventRows
from stream.records.examples import ExampleRows, concat
from stream.records.served import ServedRows
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, SERVED

_EARLY_PENDING_SHARE = 1 / 16  # each time that time is moved forward


class JoinCore:
    """The join of one partition. Feed it in any interleaving of the inputs, each input in the order of its offsets.

    One step is: feed records; `poll`; give the output its late clicks
    (`stream.join.late`); store it with its offsets in one go; call `stored` with where the examples are; bring what
    `wanted_clicks` asks for, and poll again if that yields something.

    A rebuilt core is given the committed offsets (`start_at`), the partition's examples from `Resume.examples` to the
    end (`restore`), then the inputs from the committed offsets on; it then yields what is missing and nothing twice.
    Rejects may come again after a rebuild, and be of events older than what is still known. A record whose offset
    was seen before is skipped.

    Parameters
    ----------
    salt : of hashes of ids and users; the output does not depend on it · partitions : of every input, 0: not known
    """

    def __init__(self, config: JoinConfig, partition: int, salt: int = 0, partitions: int = 0) -> None:
        self.partition = partition
        self._lead_ms = config.ms("allowed_lateness_s") + config.ms("display_lead_s")
        self._inputs = JoinInputs(config)
        self._state = JoinState(config, salt)
        self._counts: Counter[str] = Counter()
        self._events = JoinEvents(config, self._inputs, self._state, self._counts, Home(partition, partitions), salt)
        self._converted: list[ExampleRows] = []
        self._examples_end = 0  # the offset of the next examples record
        self._last_output_exposures = 0
        self._earlier_watermark_ms = 0  # what an earlier process reached

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def pending_rows(self) -> int:
        """Served rows that are not exposed."""
        return self._state.pending

    @property
    def waiting_displays(self) -> int:
        """Of them, those that were displayed and wait for the slowest input."""
        return self._state.waiting_displays

    def waiting_display_ms(self) -> list[int]:
        """The times of the displays that are not exposed yet."""
        return self._state.waiting_display_ms()

    @property
    def exposed_rows(self) -> int:
        """Exposed rows whose clicks still count."""
        return self._state.exposed

    @property
    def waiting_events(self) -> int:
        """Events that wait for their served row, display or click."""
        return len(self._events.waiting) + len(self._events.conversions)

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return self._state.bytes + self._events.waiting.bytes + self._inputs.bytes

    @property
    def id_bytes(self) -> int:
        """The part of `bytes` that ids and dense inputs of pending rows take."""
        return self._state.id_bytes

    @property
    def watermark_ms(self) -> int:
        """How far time has come by the last poll, 0 before the first that knew."""
        return max(self._inputs.reached_ms, self._earlier_watermark_ms)

    def ahead(self, by_ms: int = 0) -> frozenset[str]:
        """Inputs ahead of the slowest by more than ``by_ms``: reading on in them only makes rows wait."""
        return self._inputs.ahead(by_ms)

    # ------------------------------------------------------------------------------------------------ earlier lives

    def start_at(self, offsets: Mapping[str, int], resume: Resume) -> None:
        """Go on from committed offsets: records before them are skipped. Only before `restore` and the first input."""
        self._refuse_late()
        self._inputs.start_at(offsets)
        if resume.forgotten_ms:
            self._state.forgotten_ms = resume.forgotten_ms
        self._earlier_watermark_ms = resume.watermark_ms
        self._examples_end = resume.examples
        self._state.note_record(0, resume.examples)

    def log_cut(self, topic: str, offset: int) -> None:
        """An input's log goes on with other records than those that came: from ``offset`` on they are new.

        Rows and events of the records that are gone from it stay: they were served, displayed, clicked.
        """
        self._inputs.log_cut(topic, offset)

    def restore(self, examples: ExampleRows, offset: int, watermark_ms: int = 0) -> None:
        """Take in one record of the partition's examples, in their order; only before the first input.

        Late clicks on its exposures join, their replayed events change nothing. `watermark_ms` is that of the record;
        the output's watermark does not fall behind it.
        """
        self._refuse_late()
        self._earlier_watermark_ms = max(self._earlier_watermark_ms, watermark_ms)
        self._state.restore(examples, offset)
        self._examples_end = offset + 1

    def _refuse_late(self) -> None:
        if self._state.pending or len(self._events.waiting) or self._inputs.were_read:
            raise ValueError(
                f"partition {self.partition}: examples were handed over after inputs had been read; some would be "
                "emitted twice. Call start_at() and restore() on a new JoinCore, before its inputs."
            )

    # ------------------------------------------------------------------------------------------------------- inputs

    def served(self, rows: ServedRows, records: Records) -> None:
        """Take in records of the served topic."""
        arrived = self._arrive(SERVED, records)
        served_ms = rows.served_ms
        self._inputs.move_time(SERVED, served_ms[arrived.rows] if arrived.redelivered else served_ms, arrived)
        new = self._state.add(rows, arrived.rows, arrived.numbers, self._inputs.unfinished(SERVED))
        self._counts["duplicate_served"] += len(new) - int(np.count_nonzero(new))
        self._events.release(rows.impression_id[arrived.rows[new]])

    def impressions(self, rows: EventRows, records: Records) -> None:
        """Take in records of the impressions topic."""
        self._take(IMPRESSIONS, rows, records)

    def clicks(self, rows: EventRows, records: Records) -> None:
        """Take in records of the clicks topic."""
        self._take(CLICKS, rows, records)

    def conversions(self, rows: EventRows, records: Records) -> None:
        """Take in records of the conversions topic."""
        self._take(CONVERSIONS, rows, records)

    def watermark(self, topic: str, watermark_ms: int) -> None:
        """Take in a promise that came outside of a record: no event earlier than `watermark_ms` will follow."""
        self._inputs.promise(topic, watermark_ms)

    def _take(self, topic: str, rows: EventRows, records: Records) -> None:
        arrived = self._arrive(topic, records)
        columns: list[NDArray[Any]] = [rows.impression_id, rows.ts_ms, rows.user_key, rows.position, rows.value]
        columns.append(np.repeat(records.produced_ms, records.rows))
        if arrived.redelivered:
            columns = [column[arrived.rows] for column in columns]
        events = Events.of([*columns, arrived.numbers])
        self._inputs.move_time(topic, events.ts_ms, arrived, refused=self._events.apply(topic, events))

    def _arrive(self, topic: str, records: Records) -> Arrived:
        arrived = self._inputs.arrive(topic, records)
        self._counts["redelivered_records"] += arrived.redelivered
        self._counts[f"rows_{short(topic)}"] += len(arrived.rows)
        return arrived

    # -------------------------------------------------------------------------------------------------- conversions

    def wanted_clicks(self) -> NDArray[np.uint64]:
        """Impression ids whose clicks conversions ask for, each once; only after `stored`.

        A conversion asks when it comes, and again when its row is displayed or clicked.
        """
        return self._events.conversions.wanted()

    def clicks_found(self, clicks: StoredClicks) -> bool:
        """Answer `wanted_clicks` with those of them that are stored. Return whether there is something to poll."""
        examples, rejected = self._events.convert(clicks)
        if examples is not None:
            self._converted.append(examples)
        return bool(self._converted) or rejected or self._events.waiting.is_due(self.watermark_ms)

    # ---------------------------------------------------------------------------------------------------------- poll

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """Expose what may go out and return what became known since the last poll.

        `now_ms`, the wall clock, is given in live mode only: idle inputs then stop holding the watermark back.
        """
        watermark_ms = self._inputs.poll(now_ms)
        until_ms = -int(NEVER) if watermark_ms is None else watermark_ms + self._lead_ms
        examples, spare = self._take_examples(until_ms)
        if watermark_ms is not None:
            self._pass_time(watermark_ms)
        counts = {name: count for name, count in self._counts.items() if count}
        self._counts.clear()
        return JoinOutput(
            examples=examples,
            spare=spare,
            late=self._events.clicks.take_late(),
            rejects=self._events.rejects.take(),
            counts=counts,
            watermark_ms=self.watermark_ms,
            offsets=self._inputs.to_commit(),
            resume=Resume(
                examples=self._state.first_record(self._examples_end, self._last_output_exposures),
                forgotten_ms=max(self._state.forgotten_ms, 0),
                watermark_ms=self.watermark_ms,
            ),
        )

    def stored(self, offsets: Sequence[int], first_rows: Sequence[int]) -> None:
        """Note where the last output's examples are: the offset of each record, and the row that it begins with."""
        first_number = self._state.next_number - self._last_output_exposures
        for offset, row in zip(offsets, first_rows, strict=True):
            if row < self._last_output_exposures:
                self._state.note_record(first_number + row, offset)
        if offsets:
            self._examples_end = offsets[-1] + 1

    def shed_memory(self, over_bytes: int) -> None:
        """Give up about so much memory, see above; the next poll says what became of it. Only between steps."""
        wanted = 1 + over_bytes // self._state.exposed_row_bytes
        forgotten = self._state.shed(self.watermark_ms, wanted)
        self._counts["forgotten_rows"] += forgotten
        if forgotten < wanted and self._state.pending:
            due_ms, rows = self._state.nth_due_ms(_EARLY_PENDING_SHARE, self._lead_ms)
            self._counts["early_rows"] += rows
            self._inputs.advance_to(due_ms + 1)

    def _take_examples(self, until_ms: int) -> tuple[ExampleRows | None, int]:
        """The exposures of displays up to ``until_ms`` and of clicked rows, the latter's clicks, and conversions.

        Behind them is room for the late clicks, if there are exposures: how many rows that is comes second.
        """
        new, converted = self._events.clicks, self._converted
        self._converted, self._last_output_exposures = [], 0
        clicked, late = new.rows, new.late
        spare = len(clicked) + sum(map(len, converted)) + late
        served, displayed = self._inputs.unfinished(SERVED), self._inputs.unfinished(IMPRESSIONS)
        exposed = self._state.expose(until_ms, clicked, served, displayed, spare)
        if exposed is None:
            return (concat(converted) if converted else None), 0
        rows, clicked_at = exposed
        end = self._last_output_exposures = len(rows) - spare
        clicks = new.take(rows, clicked_at)
        self._counts["exposures"] += end
        self._counts["clicks"] += len(clicks)
        for part in (clicks, *converted):
            rows.put(end, part)
            end += len(part)
        return rows, late

    def _pass_time(self, watermark_ms: int) -> None:
        """Do what is due: an event may still come *at* the watermark, so a time is passed only when it is before."""
        self._counts["undisplayed"] += self._state.drop_undisplayed(watermark_ms, self._inputs.unfinished(SERVED))
        self._events.pass_time(watermark_ms)
        self._state.expire(watermark_ms)
