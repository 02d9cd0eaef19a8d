"""The breaker for missing clicks: displays flow, and clicks that should have come did not.

A clicks topic that lags or a tracker that broke looks like an audience that lost interest, and would be learned as one.
With μ clicks expected since the last one, none comes with probability e^−μ (Poisson). Below ``1e-6`` that is no chance:
the displays from there until clicks come again are a silence. Neither they are learned nor the clicks and conversions
of them that come later, by their display time: so what is learned stays unbiased, whatever became of those clicks.

::

    displays  learned learned learned | left out  left out  left out | learned
    clicks     .   .   .                                           .  .   .
                         last ─ μ > 13.8: from_ms                to_ms
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.delay_law import DelayLaw
from calibration.logistic import sigmoid
from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import Terms
from stream.records.examples import ExampleRows
from stream.records.wire import Silence

OPEN_MS = 2**62
"""End of a silence that has none yet."""

_BUCKET_MS = 1_000
_MEASURED_MS = 10_000  # event time after which the law takes in what came: for every batch it would cost a tenth of it
_MOST_BUCKETS = 1_024  # of display seconds since the last click; the oldest are added up
_MOST_SILENCES = 64  # that are remembered: clicks of displays in older ones are learned again
_MOST_AHEAD_MS = 60_000  # by which a click may end a silence later than the newest display: a wrong clock may not


class SilenceState(msgspec.Struct, frozen=True):
    """What a restart needs beside the law of delays."""

    silences: list[Silence] = []
    expected: list[tuple[int, float]] = []  # display second, clicks of its displays
    learned_until_ms: int = 0
    left_out_until_ms: int = 0
    since_ms: int = 0  # of earlier displays only the clicks that came late were seen: they say nothing of the delays


class ClickSilence:
    """Watches what is learned for clicks that should have come, and says which rows a silence leaves out.

    Parameters
    ----------
    least_probability : of no click by chance, below which it is a silence. 0 never finds one.
    state, law : of a snapshot, to go on after it.
    """

    def __init__(
        self,
        *,
        least_probability: float,
        state: SilenceState | None = None,
        law: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        state = state or SilenceState()
        self.silences = list(state.silences)
        self._most_expected = -math.log(least_probability) if least_probability > 0 else math.inf
        self._law = DelayLaw.from_state(law) if law else DelayLaw()
        self._came: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # displays and delays of clicks, for the law
        self._expected = dict(state.expected)
        self._learned_until_ms, self._left_out_until_ms = state.learned_until_ms, state.left_out_until_ms
        self._since_ms = state.since_ms

    @property
    def silent(self) -> bool:
        """Whether clicks are missing now."""
        return bool(self.silences) and self.silences[-1].to_ms == OPEN_MS

    @property
    def law(self) -> DelayLaw:
        """Of the clicks' delays, as it was measured at some watermark not long ago."""
        return self._law

    @property
    def known_since_ms(self) -> int:
        """Displays before it say nothing about the click rate: of some of them clicks are missing. 0: none is."""
        if not self.silences:
            return 0
        last = self.silences[-1]
        return last.from_ms if self.silent else last.to_ms

    def heard(self, rows: ExampleRows) -> Silence | None:
        """Look at rows that have come, before any is learned: the silence that the first click among them ends."""
        if not self.silent:
            return None
        clicks = np.flatnonzero(rows.kind == CLICK)
        if not len(clicks):
            return None
        latest_ms = max(self._left_out_until_ms, self.silences[-1].from_ms) + _MOST_AHEAD_MS
        clicked_ms = min(int(rows.known_ms[clicks[0]]), latest_ms)
        ended = Silence(self.silences[-1].from_ms, max(clicked_ms, self._left_out_until_ms))
        self.silences[-1] = ended
        self._expected, self._left_out_until_ms = {}, 0
        return ended

    def foreseen(
        self,
        rows: ExampleRows,
        own_watermark_ms: int,
        watermark_ms: int,
        waiting: Sequence[tuple[ExampleRows, int]] = (),
    ) -> tuple[Silence, float] | None:
        """Look at a record before it is learned: the silence that it shows to have begun, as `learned` does.

        An input that is silent is waited for, then all that it held back comes at once. The clicks of a record's
        displays are those of its own partition, of which everything is known up to ``own_watermark_ms``; the watermark
        of all partitions may still be where the clicks ended. Expected are those of served p, since nothing is scored.

        waiting : what came before it, of any partition, and is not learned yet, with how far its partition was heard.
        """
        if self.silent or (rows.kind == CLICK).any() or not (rows.kind == EXPOSURE).any():
            return None
        most = float(_served_p(rows).sum()) + sum(len(one) for one, _ in waiting)
        if most + math.fsum(self._expected.values()) <= self._most_expected:  # the usual case where little waits
            return None
        missing = self._due(watermark_ms)
        clicked = any((one.kind == CLICK).any() for one, _ in waiting)
        for one, heard_ms in ((rows, own_watermark_ms), *(() if clicked else waiting)):
            shown = one.kind == EXPOSURE
            share = self._law.share(np.maximum(heard_ms - one.ts_ms[shown], 0))
            missing += float(share @ _served_p(one))
        return self._begin(missing) if missing > self._most_expected else None

    def left_out(self, rows: ExampleRows) -> NDArray[np.bool_]:
        """(B,) the rows whose display lies in a silence."""
        out = np.zeros(len(rows), np.bool_)
        for silence in self.silences:
            out |= (rows.ts_ms >= silence.from_ms) & (rows.ts_ms < silence.to_ms)
        if self.silent:
            displayed = rows.ts_ms[out & (rows.kind == EXPOSURE) & (rows.ts_ms >= self.silences[-1].from_ms)]
            self._left_out_until_ms = max(self._left_out_until_ms, int(displayed.max(initial=-1)) + 1)
        return out

    def adopt(self, silences: list[Silence]) -> None:
        """Those of a step that is learned again."""
        if silences != self.silences:
            self.silences = list(silences)
            self._expected = {}
            self._left_out_until_ms = self._left_out_until_ms if self.silent else 0

    def learned(
        self, rows: ExampleRows, logits: NDArray[np.float32], terms: Terms, watermark_ms: int, heard_ms: int = 0
    ) -> tuple[Silence, float] | None:
        """Count a learned batch in; the silence that it shows to have begun, and the clicks that were missing.

        ``logits`` are those before learning, ``terms`` the click head's, all (B,). ``heard_ms`` is the watermark of the
        record that the batch came with, if it is ahead: of a backlog that comes at once no more is learned than shows
        that clicks are missing.
        """
        clicks, displays = np.flatnonzero(rows.kind == CLICK), np.flatnonzero(rows.kind == EXPOSURE)
        self._learned_until_ms = max(self._learned_until_ms, int(rows.ts_ms[displays].max(initial=-1)) + 1)
        if not self._since_ms and len(displays):
            self._since_ms = int(rows.ts_ms[displays].max())
        if len(clicks):
            seen = clicks[rows.ts_ms[clicks] >= max(self._since_ms, 1)]
            self._came.append((rows.ts_ms[seen], rows.delay_ms[seen]))
            self._expected = {}
            displays = displays[displays > clicks[-1]]
        if watermark_ms // _MEASURED_MS > self._law.now_ms // _MEASURED_MS:
            self._measure(watermark_ms)
        self._expect(rows.ts_ms[displays], sigmoid(logits[displays]) * terms.exposure[displays])
        missing = self._missing(watermark_ms, max(watermark_ms, heard_ms))
        return None if self.silent or missing <= self._most_expected else self._begin(missing)

    def _begin(self, missing: float) -> tuple[Silence, float]:
        self._expected = {}
        self._left_out_until_ms = 0
        self.silences = [*self.silences, Silence(self._learned_until_ms, OPEN_MS)]
        return self.silences[-1], missing

    def forget(self) -> None:
        """Drop silences beyond those that are remembered; call it while no rows wait to be learned."""
        self.silences = self.silences[-_MOST_SILENCES:]

    def state(self) -> SilenceState:
        """What a restart needs; with ``law_state``."""
        return SilenceState(
            list(self.silences), sorted(self._expected.items()), self._learned_until_ms, self._left_out_until_ms,
            self._since_ms,
        )  # fmt: skip

    def law_state(self) -> dict[str, NDArray[Any]]:
        """The law of the clicks' delays, as arrays."""
        self._take_in()
        return self._law.state()

    def _measure(self, watermark_ms: int) -> None:
        self._take_in()
        self._law.advance(watermark_ms)

    def _take_in(self) -> None:
        """Add what came; when does not matter, only what the law had before it advances."""
        if self._came:
            self._law.add(*(np.concatenate(column) for column in zip(*self._came, strict=True)))
            self._came = []

    def _expect(self, ts_ms: NDArray[np.int64], p: NDArray[np.float64]) -> None:
        seconds, where = np.unique(ts_ms // _BUCKET_MS, return_inverse=True)
        for second, clicks in zip(seconds.tolist(), np.bincount(where, p).tolist(), strict=True):
            self._expected[second] = self._expected.get(second, 0.0) + clicks
        if len(self._expected) > _MOST_BUCKETS:
            seconds_of = sorted(self._expected)
            older = seconds_of[: len(seconds_of) - _MOST_BUCKETS // 2]
            self._expected[older[-1]] = math.fsum(self._expected.pop(second) for second in older)

    def _missing(self, watermark_ms: int, heard_ms: int) -> float:
        """Clicks of the displays since the last one that should have come by ``heard_ms``."""
        if math.fsum(self._expected.values()) <= self._most_expected:  # by far the usual case, and cheap
            return 0.0
        self._measure(watermark_ms)
        return self._due(heard_ms)

    def _due(self, at_ms: int) -> float:
        """Of the clicks that are expected, those that should have come by a time."""
        if not self._expected:
            return 0.0
        ends_ms = (np.array(list(self._expected), np.int64) + 1) * _BUCKET_MS
        share = self._law.share(np.maximum(at_ms - ends_ms, 0))
        return float(share @ np.array(list(self._expected.values())))


def _served_p(rows: ExampleRows) -> NDArray[np.float64]:
    """Of the displays: what a log says, not this process."""
    p: NDArray[np.float64] = np.clip(rows.p[rows.kind == EXPOSURE].astype(np.float64), 0.0, 1.0)
    return p
