"""Clicks pay their term of the conversion head when their conversions would come.

A conversion comes hours or days after its click. If each click paid softplus(z) at once, it would be a fake negative
until then, and a campaign's clicks of today would be compared with conversions of last week's. Here each click pays its
whole term once, at an age drawn from the measured law F of the delays: age = F⁻¹(u), u a hash of its impression. So the
two terms of a click are paid with the same distribution of delays: whatever traffic does, the payments of a moment are
those of as many clicks as its conversions come from, and p = conversions / payments is true at once, as well for what
was launched an hour ago. F is measured free of truncation (`calibration.delay_law`), from a prior at first.

O. Chapelle, "Modeling delayed feedback in display advertising", KDD 2014, weighs each click by the chance that its
conversion is still to come instead; that needs a pass over all open clicks, and a model of the delays beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.delay_law import DelayLaw
from calibration.delay_prior import MEDIAN_SPREAD, DelayPrior
from learners.examples.kinds import CLICK, CONVERSION
from learners.examples.terms import CONVERSION_HEAD, Terms
from learners.features.rows import Rows
from learners.protocol.state_names import prefixed, under
from learners.training.sampling import uniform
from stream.records.examples import ExampleRows
from stream.records.wire import ConversionDelays

_SEED = 23  # another draw than that of the exposures which are learned
_REDRAWN_MS = 3_600_000  # ages are drawn again, as the law has become better known,
_FIRST_EVENTS = 8  # and whenever twice as many conversions have been seen, from twice these on
_MIN_ROOM = 1_024
DELAYED_COLUMNS = ("ids", "dense", "impression_id", "clicked_ms", "due_ms")
"""What is kept of each click that waits."""


class Step(NamedTuple):
    """What a batch teaches: its own rows, then those of clicks that are due."""

    rows: Rows  # B + paid
    terms: Terms
    paid: int  # clicks whose term is in it
    paid_early: int  # before they were due, because too many waited


class DelayedTerms:
    """The clicks whose term is still to be paid, and the conversions that were learned. No clock: event time.

    A click's first conversion teaches the head, P(at least one); later ones teach nothing, nor do those of clicks that
    this never saw: their term was not paid here, but, well or badly, by the base.

    Parameters
    ----------
    delays : attribution window and prior of the law.
    most_rows : of waiting clicks; beyond it those due next are paid early. At 40 ids and 36 dense inputs a row takes
        490 bytes. As many conversions are remembered.
    state : of a snapshot, to go on after it.
    """

    def __init__(
        self, delays: ConversionDelays, *, most_rows: int, state: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        self.delays = delays
        self._most_rows = most_rows
        self._law = _law(delays, under("law.", state) if state else None)
        self._rows = 0
        self._columns: dict[str, NDArray[Any]] = {}
        self._converted: dict[int, int] = {}  # impression → conversion time, in the order in which they came
        self._since_ms, self._drawn_ms, self._drawn_events = 2**62, 0, 0
        if state:
            self._since_ms, self._drawn_ms = (int(at) for at in state["clock"])
            self._drawn_events = int(state["drawn_events"][0]) if "drawn_events" in state else 0  # not in older ones
            self._converted = dict(zip(state["converted"].tolist(), state["converted_ms"].tolist(), strict=True))
            self._columns = {name: np.array(state[name]) for name in DELAYED_COLUMNS if name in state}
            self._rows = len(self._columns["due_ms"]) if self._columns else 0

    def __len__(self) -> int:
        return self._rows

    def use(self, delays: ConversionDelays) -> None:
        """From now on; another window begins with an unmeasured law."""
        if delays != self.delays:
            kept = self._law.state() if delays.horizon_s == self.delays.horizon_s else None
            self.delays, self._law = delays, _law(delays, kept)

    def step(
        self,
        rows: ExampleRows,
        terms: Terms,
        heads: Sequence[str],
        watermark_ms: int,
        *,
        most_paid: int = 0,
        paid: int | None = None,
    ) -> Step:
        """Take a batch's clicks and conversions in, and add the terms that are due by the watermark.

        Parameters
        ----------
        terms : of the B rows by their kinds, (B, H); for H = 1 (B,).
        most_paid : clicks paid at once, but for those that find no room: a leap of time must not make a
            batch of nothing else.
        paid : exactly so many, as a run before this one did; None decides.
        """
        self._measure(rows, watermark_ms)
        clicks = rows.take(np.flatnonzero(rows.kind == CLICK))
        if len(clicks):
            self._add(clicks)
        due = int(np.count_nonzero(self._due_ms() <= watermark_ms))
        if paid is None:
            paid = max(min(due, most_paid), self._rows - self._most_rows)
        payers = self._take(paid, watermark_ms) if paid else rows.take(slice(0, 0)).rows()
        head = list(heads).index(CONVERSION_HEAD)
        exposure, event = (column.reshape(len(rows), len(heads)).copy() for column in terms)
        exposure[:, head] = 0.0
        event[:, head] *= self._first(rows)
        due_terms = np.zeros((paid, len(heads)), np.float32)
        due_terms[:, head] = 1.0
        exposure, event = np.concatenate([exposure, due_terms]), np.concatenate([event, np.zeros_like(due_terms)])
        if len(heads) == 1:
            exposure, event = exposure[:, 0], event[:, 0]
        learned = Rows(np.concatenate([rows.ids, payers.ids]), np.concatenate([rows.dense, payers.dense]))
        return Step(learned, Terms(exposure, event), paid, max(0, paid - due))

    def state(self) -> dict[str, NDArray[Any]]:
        """What a restart needs: arrays, copies."""
        return {
            **{name: column[: self._rows].copy() for name, column in self._columns.items()},
            **prefixed("law.", self._law.state()),
            "clock": np.array([self._since_ms, self._drawn_ms], np.int64),
            "drawn_events": np.array([self._drawn_events], np.int64),
            "converted": np.array(list(self._converted), np.uint64),
            "converted_ms": np.array(list(self._converted.values()), np.int64),
        }

    def _measure(self, rows: ExampleRows, watermark_ms: int) -> None:
        """Delays of the conversions into the law; now and then the ages of all waiting clicks by what it knows now."""
        found = rows.kind == CONVERSION
        if found.any():
            self._law.add(rows.known_ms[found] - rows.delay_ms[found], rows.delay_ms[found])
        better_known = self._law.events >= 2 * max(self._drawn_events, _FIRST_EVENTS)
        if better_known or watermark_ms // _REDRAWN_MS > self._drawn_ms // _REDRAWN_MS:
            self._law.advance(watermark_ms)
            self._drawn_ms, self._drawn_events = watermark_ms, self._law.events
            self._forget(watermark_ms)
            if self._rows:
                waiting = {name: column[: self._rows] for name, column in self._columns.items()}
                waiting["due_ms"][...] = self._drawn(waiting["impression_id"], waiting["clicked_ms"])

    def _drawn(self, impression_id: NDArray[np.uint64], clicked_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """When clicks pay."""
        ages = self._law.quantile(uniform(impression_id, _SEED))
        return clicked_ms + np.ceil(ages).astype(np.int64)

    def _due_ms(self) -> NDArray[np.int64]:
        return self._columns["due_ms"][: self._rows] if self._rows else np.empty(0, np.int64)

    def _add(self, clicks: ExampleRows) -> None:
        self._since_ms = min(self._since_ms, int(clicks.known_ms.min()))
        end = self._rows + len(clicks)
        columns: dict[str, NDArray[Any]] = {
            "ids": clicks.ids,
            "dense": clicks.dense,
            "impression_id": clicks.impression_id,
            "clicked_ms": clicks.known_ms,
            "due_ms": self._drawn(clicks.impression_id, clicks.known_ms),
        }
        for name, column in columns.items():
            kept = self._columns.get(name)
            if kept is None or len(kept) < end:
                room = np.empty((max(2 * end, _MIN_ROOM), *column.shape[1:]), column.dtype)
                if kept is not None:
                    room[: self._rows] = kept[: self._rows]
                kept = self._columns[name] = room
            kept[self._rows : end] = column
        self._rows = end

    def _take(self, count: int, watermark_ms: int) -> Rows:
        """Remove the ``count`` clicks that are due first; the last rows move into their places."""
        due_ms = self._due_ms()
        candidates = np.flatnonzero(due_ms <= watermark_ms)
        if count > len(candidates):
            candidates = np.arange(self._rows)
        taken = candidates[np.argsort(due_ms[candidates], kind="stable")[:count]]
        found = Rows(self._columns["ids"][taken], self._columns["dense"][taken])
        left = self._rows - count
        last = np.setdiff1d(np.arange(left, self._rows), taken, assume_unique=True)
        holes = np.sort(taken[taken < left])
        for column in self._columns.values():
            column[holes] = column[last]
        self._rows = left
        return found

    def _first(self, rows: ExampleRows) -> NDArray[np.bool_]:
        """(B,) the conversions that teach: the first of a click that was seen here, within the window."""
        first = np.zeros(len(rows), np.bool_)
        horizon_ms = self.delays.horizon_s * 1000.0
        for at in np.flatnonzero((rows.kind == CONVERSION) & (rows.delay_ms <= horizon_ms)).tolist():
            impression, known_ms = int(rows.impression_id[at]), int(rows.known_ms[at])
            first[at] = impression not in self._converted and known_ms - int(rows.delay_ms[at]) >= self._since_ms
            self._converted.setdefault(impression, known_ms)
        while len(self._converted) > self._most_rows:
            del self._converted[next(iter(self._converted))]
        return first

    def _forget(self, watermark_ms: int) -> None:
        """Conversions whose click can have no other any more."""
        oldest_ms = watermark_ms - self.delays.horizon_s * 1000.0
        self._converted = {one: at for one, at in self._converted.items() if at >= oldest_ms}


def _law(delays: ConversionDelays, state: Mapping[str, NDArray[Any]] | None) -> DelayLaw:
    prior = DelayPrior(median_s=delays.median_s, sigma=delays.sigma, median_spread=MEDIAN_SPREAD)
    return DelayLaw.from_state(state, prior=prior) if state else DelayLaw(delays.horizon_s, prior=prior)
