"""The rows of a partition's join: pending ones with their columns, settled ones by key, time and place in the log."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.kinds import SETTLED
from stream import join_kernels as kernels
from stream.examples import ExampleRows
from stream.inputs import ServedRows
from stream.join_config import JoinConfig
from stream.join_kernels import COUNT, HEAD, NEVER, TAIL, Open, Rows, Rules
from stream.pending_rows import PendingRows
from stream.waiting_events import Events

_BY_PLACE = ("keys", "times", "states", "served", "displayed")  # columns of `Rows`
_BY_NUMBER = ("settled_keys", "settled_times", "settled_states")
_FIRST_SLOTS = 1024  # of the index; a power of two, as all its sizes
_FIRST_SETTLED = 1024
_FEW = 16  # so many times fewer rows than records are looked up one by one
_FULL_AT = 0.75  # load of the index


class HeldRows:
    """Rows by impression id. A *reference* (of `join_kernels`) is what an event met: a place, a settled row, or −1.

    Settled rows are numbered in the order in which they settled. Their columns stand in the examples topic; which
    record holds which of them is noted once it is written there (`note_record`).
    """

    def __init__(self, config: JoinConfig, salt: int) -> None:
        self._window_ms = config.ms("click_window_s")
        self._display_horizon_ms = config.ms("display_horizon_s")
        self._late_horizon_ms = config.ms("late_horizon_s")
        self._salt = np.uint64(salt)
        self._columns = PendingRows()
        self._rows = _no_rows()
        self._record_starts = [0]  # number of the first settled row in each examples record that still counts
        self._record_offsets = [0]
        self.forgotten_ms = -int(NEVER)  # display time of the newest row that was forgotten

    @property
    def pending(self) -> int:
        """Served rows that are not settled."""
        return int(self._rows.live.sum())

    @property
    def settled(self) -> int:
        """Settled rows that are still known."""
        return self.next_number - self._head

    @property
    def next_number(self) -> int:
        """The number of the next row that settles."""
        return int(self._rows.counters[TAIL])

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(array.nbytes for array in self._rows) + self._columns.bytes

    @property
    def id_bytes(self) -> int:
        """The part of it that ids and dense inputs of pending rows take."""
        return self._columns.id_bytes

    @property
    def settled_row_bytes(self) -> int:
        """What forgetting one settled row gives back."""
        sizes: list[int] = [getattr(self._rows, name).itemsize for name in _BY_NUMBER]
        return sum(sizes) + int(8 / _FULL_AT)

    # ----------------------------------------------------------------------------------------------- what events do

    def add(
        self, rows: ServedRows, which: NDArray[np.intp], records: NDArray[np.uint32], served: Open
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Make those of the rows ``which`` pending that are not known: which are new, and what the others met."""
        keys, served_ms = rows.impression_id[which], rows.served_ms[which]
        places = self._make_room(pending=len(keys))
        new = kernels.add_served(self._rows, self._rules(), served, keys, served_ms, records, places)
        self._columns.put(rows, which[new])
        return new, self.look_up(keys[~new])

    def show(self, impressions: Events, served: Open, shown: Open) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Display rows: what became of each impression, and what it met."""
        columns = impressions.impression_id, impressions.ts_ms, impressions.record
        return kernels.apply_impressions(self._rows, self._rules(), served, shown, *columns)

    def click(
        self, clicks: Events, served: Open, shown: Open, clicked: Open
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Settle rows as clicked, or correct them: what became of each click, and what it met."""
        self._make_room(settled=len(clicks))
        columns = clicks.impression_id, clicks.ts_ms, clicks.record
        return kernels.apply_clicks(self._rows, self._rules(), served, shown, clicked, *columns)

    def pass_time(
        self, watermark_ms: int, served: Open, shown: Open
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64], int]:
        """Settle as unclicked what is due, in the order of its time, and drop what nobody saw.

        Returns the places and the keys of what settled, and how much was dropped.
        """
        blocks = np.flatnonzero(self._rows.due[: self._columns.block_count] < watermark_ms)
        due, hidden = kernels.due_places(self._rows, self._rules(), blocks, watermark_ms)
        due = due[np.argsort(self._rows.times[due], kind="stable")]
        self._make_room(settled=len(due))
        kernels.settle_unclicked(self._rows, self._rules(), served, shown, due)
        kernels.drop_undisplayed(self._rows, self._rules(), served, hidden)
        self._columns.free(self._rows.live, hidden)
        return due, self._rows.keys[due], len(hidden)

    def examples(self, places: NDArray[np.int64]) -> ExampleRows:
        """The rows at these places as they settle without a click."""
        count, display_ms = len(places), self._rows.times[places]
        return ExampleRows(
            kind=np.full(count, SETTLED, np.uint8),
            label=np.zeros(count, np.uint8),
            impression_id=self._rows.keys[places],
            ts_ms=display_ms,
            known_ms=display_ms + self._window_ms,
            delay_ms=np.full(count, -1, np.int64),
            value=np.zeros(count, np.float32),
            click_produced_ms=np.zeros(count, np.int64),
            **self._columns.columns(places),
        )

    def release(self, places: NDArray[np.int64]) -> None:
        """Give the places of settled rows back, once their columns were read."""
        kernels.release(self._rows, places)
        self._columns.free(self._rows.live, places)

    # ------------------------------------------------------------------------------------------------- what is known

    def look_up(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The references of keys, (B,)."""
        return kernels.look_up(self._rows, keys, self._salt)

    def time_ms(self, reference: int) -> int:
        """When a row was displayed (or served, before that); 0 for none."""
        if reference < 0:
            return 0
        if reference < kernels.SETTLED:
            return int(self._rows.times[reference])
        return int(self._rows.settled_times[(reference - kernels.SETTLED) & (len(self._rows.settled_times) - 1)])

    def is_displayed(self, reference: int) -> bool:
        """Whether there is such a row, displayed or settled."""
        return reference >= kernels.SETTLED or (reference >= 0 and self._rows.states[reference] != kernels.SERVED)

    def numbers(self, references: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers, which never wrap round, of settled rows from their references."""
        return self._head + ((references - kernels.SETTLED - self._head) & (kernels.SETTLED - 1))

    def example_offsets(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The offsets of the examples records that hold settled rows."""
        if _FEW * len(numbers) < len(self._record_starts):
            return np.array([self._record_offsets[self._record_of(number)] for number in numbers.tolist()], np.int64)
        at = np.searchsorted(np.array(self._record_starts), numbers, side="right") - 1
        offsets: NDArray[np.int64] = np.array(self._record_offsets)[at]
        return offsets

    def _record_of(self, number: int) -> int:
        """The place of the record that holds a settled row."""
        return bisect_right(self._record_starts, number) - 1

    def first_example_offset(self, examples_end: int) -> int:
        """The offset of the record that holds the oldest settled row; ``examples_end`` when there is none."""
        return self._record_offsets[self._record_of(self._head)] if self.settled else examples_end

    def note_record(self, first_number: int, offset: int) -> None:
        """Note that the settled rows from ``first_number`` on stand in the record at ``offset``, or in later ones."""
        if self._record_starts[-1] == first_number:
            self._record_offsets[-1] = offset
        else:
            self._record_starts.append(first_number)
            self._record_offsets.append(offset)

    def recall(
        self, keys: NDArray[np.uint64], display_ms: NDArray[np.int64], clicked: NDArray[np.bool_], offset: int
    ) -> None:
        """Take up rows of the examples record at ``offset``, settled or corrected in an earlier life."""
        self.note_record(self.next_number, offset)
        self._make_room(settled=len(keys))
        kernels.recall(self._rows, self._rules(), keys, display_ms, clicked)

    # -------------------------------------------------------------------------------------------------------- memory

    def forget(self, before_ms: int, most: int, *, passing: bool = False) -> int:
        """Forget settled rows displayed before ``before_ms``, oldest first, at most so many: how many.

        ``passing``: clicked rows that must stay, since they settled early, do not keep older ones from being forgotten.
        """
        count, newest_ms = kernels.forget(self._rows, self._rules(), before_ms, most, passing)
        if count:
            self.forgotten_ms = max(self.forgotten_ms, int(newest_ms))
            gone = self._record_of(self._head)
            if 2 * gone >= len(self._record_starts):  # to move the rest each time would cost all that is held
                del self._record_starts[:gone], self._record_offsets[:gone]
        return int(count)

    def expire(self, watermark_ms: int) -> None:
        """Forget what no click can correct any more."""
        self.forget(watermark_ms - self._late_horizon_ms, int(NEVER))
        self._shrink()

    def nth_due_ms(self, share: float) -> tuple[int, int]:
        """When that share of the pending rows will be due, and how many rows that are."""
        due = kernels.times_due(self._rows, self._rules())
        nth = int(len(due) * share)
        return int(np.partition(due, nth)[nth]), nth + 1

    @property
    def _head(self) -> int:
        return int(self._rows.counters[HEAD])

    def _rules(self) -> Rules:
        return Rules(self._window_ms, self._display_horizon_ms, self._late_horizon_ms, self.forgotten_ms, self._salt)

    def _make_room(self, *, pending: int = 0, settled: int = 0) -> NDArray[np.int64]:
        """Have room for so many more rows; the places of the pending ones."""
        rows = self._rows
        places = self._columns.next_places(pending)
        blocks = int(places.max(initial=-1)) // kernels.BLOCK + 1
        if blocks > len(rows.live):
            rows = _with_blocks(rows, max(blocks, len(rows.live) + len(rows.live) // 8))
        if self.settled + settled > len(rows.settled_keys):
            rows = _with_settled(rows, self.settled + settled)
        references = int(rows.counters[COUNT]) + pending + settled
        if references > len(rows.slots) * _FULL_AT:
            rows = rows._replace(slots=_spread(rows.slots, references))
        self._rows = rows
        return places

    def _shrink(self) -> None:
        """Give memory back once rows that are gone took most of it."""
        rows = self._rows
        self._columns.trim()
        if 2 * self._columns.block_count < len(rows.live):
            rows = _with_blocks(rows, self._columns.block_count)
        if 4 * self.settled < len(rows.settled_keys) and len(rows.settled_keys) > _FIRST_SETTLED:
            rows = _with_settled(rows, self.settled + 1)
        references = int(rows.counters[COUNT])
        if 4 * references < len(rows.slots) * _FULL_AT and len(rows.slots) > _FIRST_SLOTS:
            rows = rows._replace(slots=_spread(rows.slots, references))
        self._rows = rows


def _no_rows() -> Rows:
    return Rows(
        slots=np.zeros(_FIRST_SLOTS, np.uint64),
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


def _with_blocks(rows: Rows, blocks: int) -> Rows:
    """Room for so many blocks of pending rows, more or fewer than before."""
    changed = {name: _resized(getattr(rows, name), blocks * kernels.BLOCK) for name in _BY_PLACE}
    due = _resized(rows.due, blocks, NEVER)
    return rows._replace(**changed, live=_resized(rows.live, blocks), due=due)


def _resized(column: NDArray[Any], size: int, fill: int | np.int64 = 0) -> NDArray[Any]:
    kept = column[:size].copy() if size < len(column) else column
    return np.concatenate((kept, np.full(size - len(kept), fill, column.dtype)))


def _with_settled(rows: Rows, count: int) -> Rows:
    """A ring for at least so many settled rows."""
    size = _FIRST_SETTLED
    while size < count:
        size *= 2
    numbers = np.arange(int(rows.counters[HEAD]), int(rows.counters[TAIL]))
    moved = {}
    for name in _BY_NUMBER:
        old = getattr(rows, name)
        moved[name] = np.zeros(size, old.dtype)
        moved[name][numbers & (size - 1)] = old[numbers & (len(old) - 1)]
    return rows._replace(**moved)


def _spread(index: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The index with room for so many references."""
    size = _FIRST_SLOTS
    while count > size * _FULL_AT:
        size *= 2
    spread = np.zeros(size, np.uint64)
    kernels.spread(index, spread)
    return spread
