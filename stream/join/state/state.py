"""The rows of a partition's join: pending ones with their columns, exposed ones by key, time and log position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, EXPOSURE
from stream.join.config import JoinConfig
from stream.join.state import kernels as kernels
from stream.join.state.columns import PendingRows
from stream.join.state.displays import WaitingDisplays
from stream.join.state.dropped import DroppedRows
from stream.join.state.exposure_index import ExposureIndex
from stream.join.state.kernels import COUNT, HEAD, NEVER, TAIL, Open, Rules
from stream.join.state.rows import (
    FIRST_EXPOSED,
    FIRST_SLOTS,
    FULL_AT,
    longer,
    no_rows,
    with_blocks,
    with_exposed,
    with_slots,
)
from stream.join.state.waiting import Events
from stream.records.examples import ExampleRows
from stream.records.served import ServedRows


class JoinState:
    """Rows by impression id. A *reference* (of `kernels`) is a pending row's index, an exposed row, or −1.

    Exposed rows are numbered in the order of their exposures. Their columns stand in the examples topic; which record
    holds which of them is noted once it is written there (`note_record`).
    """

    def __init__(self, config: JoinConfig, salt: int) -> None:
        self._display_horizon_ms = config.ms("display_horizon_s")
        self._click_horizon_ms = config.ms("click_horizon_s")
        self._lateness_ms = config.ms("allowed_lateness_s")
        self._salt = np.uint64(salt)
        self._columns = PendingRows()
        self._rows = no_rows()
        self._displays = WaitingDisplays()
        self._records = ExposureIndex()
        self._dropped = DroppedRows(2 * self._display_horizon_ms)
        self.forgotten_ms = -int(NEVER)  # display time of the newest row that was forgotten

    @property
    def pending(self) -> int:
        """Served rows that are not exposed."""
        return int(self._rows.live.sum())

    @property
    def waiting_displays(self) -> int:
        """Of them, about how many were displayed."""
        return len(self._displays)

    def waiting_display_ms(self) -> list[int]:
        """The times of the displays that are not exposed yet."""
        waiting = np.isin(self._rows.states, (kernels.DISPLAYED, kernels.CLICKED, kernels.DUE))
        times: list[int] = self._rows.times[waiting].tolist()
        return times

    @property
    def exposed(self) -> int:
        """Exposed rows that are still known."""
        return self.next_number - self._head

    @property
    def next_number(self) -> int:
        """The number of the next row that is exposed."""
        return int(self._rows.counters[TAIL])

    @property
    def bytes(self) -> int:
        """Memory taken."""
        parts = (self._columns, self._displays, self._records, self._dropped)
        return sum(array.nbytes for array in self._rows) + sum(part.bytes for part in parts)

    @property
    def id_bytes(self) -> int:
        """The part of it that ids and dense inputs of pending rows take."""
        return self._columns.id_bytes

    @property
    def exposed_row_bytes(self) -> int:
        """What forgetting one exposed row gives back."""
        rows = self._rows
        ring = (rows.exposed_keys, rows.exposed_users, rows.exposed_times, rows.exposed_clicked)
        return sum(column.itemsize for column in ring) + int(8 / FULL_AT)

    # ----------------------------------------------------------------------------------------------- what events do

    def add(
        self, rows: ServedRows, which: NDArray[np.intp], records: NDArray[np.uint32], served: Open
    ) -> NDArray[np.bool_]:
        """Make those of the rows ``which`` pending that are not known; which are new, (B,)."""
        keys, request = rows.impression_id[which], rows.row_request[which]
        served_ms, users = rows.ts_ms[request], rows.user_key[request]
        indices = self._make_room(pending=len(keys))
        new = kernels.add_served(self._rows, self._rules(), served, keys, users, served_ms, records, indices)
        self._columns.put(rows, which[new])
        return new

    def display(self, impressions: Events, displayed: Open) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Display rows: what became of each impression, and the reference that it named."""
        columns = impressions.impression_id, impressions.user_key, impressions.ts_ms, impressions.record
        outcome, reference = kernels.apply_impressions(self._rows, self._rules(), displayed, *columns)
        shown = outcome == kernels.DISPLAY
        self._displays.add(reference[shown], impressions.ts_ms[shown])
        return outcome, reference

    def click(self, clicks: Events, clicked: Open) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Click rows: what became of each click, and the reference that it named."""
        columns = clicks.impression_id, clicks.user_key, clicks.ts_ms, clicks.record
        return kernels.apply_clicks(self._rows, self._rules(), clicked, *columns)

    def drop_undisplayed(self, watermark_ms: int, served: Open) -> int:
        """Forget served rows whose horizon the watermark has passed: how many."""
        blocks = np.flatnonzero(self._rows.due[: self._columns.block_count] < watermark_ms)
        indices = kernels.undisplayed_rows(self._rows, self._rules(), blocks, watermark_ms)
        self._dropped.add(self._rows.keys[indices], watermark_ms)
        kernels.drop_undisplayed(self._rows, self._rules(), served, indices)
        self._columns.free(self._rows.live, indices)
        return len(indices)

    def expose(
        self, until_ms: int, clicked: NDArray[np.int64], served: Open, displayed: Open, spare: int
    ) -> tuple[ExampleRows, NDArray[np.int64]] | None:
        """Expose what was displayed up to ``until_ms``, and the clicked rows at these indices, in the order of display.

        Returns the exposures, with ``spare`` rows more, not filled, and where among them the clicked ones are; None for
        none. The indices are given up.
        """
        parts = [clicked]
        for part in self._displays.take(until_ms):
            due, later = kernels.due_displays(self._rows, part, until_ms)
            self._displays.add(later, self._rows.times[later])
            parts.append(due)
        indices = np.concatenate(parts)
        if not len(indices):
            return None
        indices = indices[np.argsort(self._rows.times[indices], kind="stable")]
        self._make_room(exposed=len(indices))
        kernels.expose(self._rows, self._rules(), served, displayed, indices)
        exposures, clicked_at = self._examples(indices, spare), self._rows.displayed[clicked].astype(np.int64)
        kernels.release(self._rows, indices)
        self._columns.free(self._rows.live, indices)
        return exposures, clicked_at

    def _examples(self, indices: NDArray[np.int64], spare: int) -> ExampleRows:
        """The rows at these indices as exposures."""
        size, display_ms = len(indices) + spare, longer(self._rows.times[indices], spare)
        return ExampleRows(
            kind=np.full(size, EXPOSURE, np.uint8),
            impression_id=longer(self._rows.keys[indices], spare),
            ts_ms=display_ms,
            known_ms=display_ms.copy(),
            delay_ms=np.zeros(size, np.int64),
            value=np.zeros(size, np.float32),
            click_produced_ms=np.zeros(size, np.int64),
            **self._columns.columns(indices, spare),
        )

    # ------------------------------------------------------------------------------------------------- what is known

    def look_up(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The references of keys, (B,)."""
        return kernels.look_up(self._rows, keys, self._salt)

    def time_ms(self, reference: int) -> int:
        """When a row was displayed (or served, before that); 0 for none."""
        if reference < 0:
            return 0
        if reference < kernels.EXPOSED:
            return int(self._rows.times[reference])
        return int(self._rows.exposed_times[(reference - kernels.EXPOSED) & (len(self._rows.exposed_times) - 1)])

    def is_displayed(self, reference: int) -> bool:
        """Whether there is such a row, and it was displayed."""
        return reference >= kernels.EXPOSED or (reference >= 0 and self._rows.states[reference] != kernels.SERVED)

    def were_dropped(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows were dropped as undisplayed, in this life and not long ago, (B,)."""
        return self._dropped.known(keys)

    def in_log(self, references: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where exposed rows stand in the examples topic: the offsets of their records, and their rows in these."""
        return self._records.find(self._head + ((references - kernels.EXPOSED - self._head) & (kernels.EXPOSED - 1)))

    def first_record(self, examples_end: int, unstored: int) -> int:
        """The offset of the record with the oldest exposed row; the newest ``unstored`` come at ``examples_end``."""
        if self._head >= self.next_number - unstored:
            return examples_end
        return int(self._records.find(np.array([self._head]))[0][0])

    def note_record(self, first_number: int, offset: int) -> None:
        """Note that the exposed rows from ``first_number`` on stand in the record at ``offset``, or in later ones."""
        self._records.note(first_number, offset)

    def restore(self, examples: ExampleRows, offset: int) -> None:
        """Restore the exposures and clicks of the examples record at ``offset``, of an earlier process."""
        rows = examples.take((examples.kind == EXPOSURE) | (examples.kind == CLICK))
        self.note_record(self.next_number, offset)
        self._make_room(exposed=len(rows))
        columns = rows.impression_id, rows.user_key, rows.ts_ms, rows.kind == CLICK
        kernels.restore(self._rows, self._rules(), *columns)

    # -------------------------------------------------------------------------------------------------------- memory

    def shed(self, watermark_ms: int, most: int) -> int:
        """Forget exposed rows of which no first display can come now, oldest first, at most so many: how many."""
        return self._forget(watermark_ms - self._display_horizon_ms - self._lateness_ms, most)

    def _forget(self, before_ms: int, most: int = int(NEVER)) -> int:
        count, newest_ms = kernels.forget(self._rows, self._rules(), before_ms, most)
        if count:
            self.forgotten_ms = max(self.forgotten_ms, int(newest_ms))
            self._records.forget(self._head)
        return int(count)

    def expire(self, watermark_ms: int) -> None:
        """Forget the rows whose clicks no longer count, nor wait in a record that a restart reads again."""
        self._forget(watermark_ms - self._click_horizon_ms - self._display_horizon_ms)
        self._dropped.expire(watermark_ms)
        self._shrink()

    def nth_due_ms(self, share: float, lead_ms: int) -> tuple[int, int]:
        """The watermark at which that share of the pending rows is exposed or dropped, and how many they are."""
        due = kernels.times_due(self._rows, self._rules(), lead_ms)
        nth = int(len(due) * share)
        return int(np.partition(due, nth)[nth]), nth + 1

    @property
    def _head(self) -> int:
        return int(self._rows.counters[HEAD])

    def _rules(self) -> Rules:
        return Rules(self._display_horizon_ms, self._click_horizon_ms, self.forgotten_ms, self._lateness_ms, self._salt)

    def _make_room(self, *, pending: int = 0, exposed: int = 0) -> NDArray[np.int64]:
        """Have room for so many more rows; the indices of the pending ones."""
        rows = self._rows
        indices = self._columns.next_indices(pending)
        blocks = int(indices.max(initial=-1)) // kernels.BLOCK + 1
        if blocks > len(rows.live):
            rows = with_blocks(rows, max(blocks, len(rows.live) + len(rows.live) // 8))
        if self.exposed + exposed > len(rows.exposed_keys):
            rows = with_exposed(rows, self.exposed + exposed)
        references = int(rows.counters[COUNT]) + pending + exposed
        if references > len(rows.slots) * FULL_AT:
            rows = rows._replace(slots=with_slots(rows.slots, references))
        self._rows = rows
        return indices

    def _shrink(self) -> None:
        """Give memory back once rows that are gone took most of it."""
        rows = self._rows
        self._columns.trim()
        if 2 * self._columns.block_count < len(rows.live):
            rows = with_blocks(rows, self._columns.block_count)
        if 4 * self.exposed < len(rows.exposed_keys) and len(rows.exposed_keys) > FIRST_EXPOSED:
            rows = with_exposed(rows, self.exposed + 1)
        references = int(rows.counters[COUNT])
        if 4 * references < len(rows.slots) * FULL_AT and len(rows.slots) > FIRST_SLOTS:
            rows = rows._replace(slots=with_slots(rows.slots, references))
        self._rows = rows
