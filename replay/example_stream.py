"""A dataset's examples in the order of the stream, and the learning steps they are cut into.

The displays come from the log (or, where a dataset shows the best few ads, from a random ranking), so they do not hang
on any model: the stream is collected once and any learner can be driven over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION
from learners.features.spec import FeatureSpec
from replay.backtest import BacktestOptions, collect
from replay.progress import Progress
from replay.report import Displayed, displayed
from replay.scenario import Scenario
from stream.learn.config import LearningConfig
from stream.learn.learn_order import in_learn_order
from stream.records.examples import ExampleRows, concat
from stream.sessions.in_memory import MemorySessionStore


class Step(NamedTuple):
    """One learning step: rows ``start`` to ``stop`` of the rows that are learned.

    ``watermark_ms`` is what a learner hears before it; what it learned serves impressions from ``from_ms`` on.
    """

    watermark_ms: int
    from_ms: int
    start: int
    stop: int


class Matured(NamedTuple):
    """Labelled rows of N impressions, each learned when it has a certain age, with what is known of it by then."""

    rows: ExampleRows  # exposures in the order of display
    clicked: NDArray[np.bool_]  # (N,)
    ends: NDArray[np.int64]  # (R,) as of the span's records: how many were old enough


@dataclass(frozen=True, slots=True)
class Span:
    """The examples of some days in order of arrival, those of a record in the order in which they are learned.

    Record i ends before row ``ends[i]`` and arrived when the watermark had reached ``watermarks_ms[i]``.
    """

    examples: ExampleRows
    ends: NDArray[np.int64]  # (R,)
    watermarks_ms: NDArray[np.int64]  # (R,)

    @classmethod
    def of(cls, records: Sequence[tuple[ExampleRows, int]]) -> Span:
        """From records with their watermarks. Raises ValueError for none at all."""
        if not records:
            raise ValueError("no impression was displayed in these days: there is nothing to learn. Replay more days.")
        ends = np.cumsum([len(rows) for rows, _ in records])
        return cls(
            concat([in_learn_order(rows) for rows, _ in records]), ends, np.array([at for _, at in records], np.int64)
        )

    def learnable(self) -> tuple[ExampleRows, NDArray[np.int64]]:
        """Exposures and clicks as they arrived, and where each record ends among them."""
        kept = self.examples.kind != CONVERSION
        counts = np.concatenate(([0], np.cumsum(kept)))
        return self.examples.take(kept), counts[self.ends]

    def displayed(self) -> Displayed:
        """Each displayed impression once, in order of display, and whether it was clicked in the end."""
        return displayed(self.examples)

    def matured(self, click_window_s: float) -> Matured:
        """What a learner that needs labels gets: each impression when it is as old as the click window."""
        window_ms = round(click_window_s * 1000)
        rows, _, _ = self.displayed()
        in_time = (self.examples.kind == CLICK) & (self.examples.delay_ms <= window_ms)
        clicked = np.isin(rows.impression_id, self.examples.impression_id[in_time])
        ends = np.searchsorted(rows.ts_ms, np.maximum.accumulate(self.watermarks_ms) - window_ms)
        return Matured(rows, clicked, ends)


@dataclass(frozen=True, slots=True)
class ExampleStream:
    """The base days and the online days that follow them."""

    base: Span
    online: Span


def collect_stream(
    scenario: Scenario,
    spec: FeatureSpec,
    base_ms: tuple[int, int],
    online_ms: tuple[int, int],
    progress: Progress,
    options: BacktestOptions,
) -> ExampleStream:
    """Replay both spans without a model; session features go through from one to the other."""
    store = MemorySessionStore(spec)
    spans = []
    for what, span_ms in (("base days", base_ms), ("online days", online_ms)):
        records: list[tuple[ExampleRows, int]] = []

        def keep(rows: ExampleRows | None, watermark_ms: int, into: list[tuple[ExampleRows, int]] = records) -> None:
            if rows is not None:
                into.append((rows, watermark_ms))

        with progress.counting(what, scenario.count(*span_ms)) as advance:
            collect(scenario, spec, store, span_ms, advance, keep, options)
        spans.append(Span.of(records))
    return ExampleStream(*spans)


def base_steps(times_ms: NDArray[np.int64], batch_rows: int) -> Iterator[Step]:
    """Steps over N rows of base training: full batches in the order of their times (N,), no clock."""
    for start in range(0, len(times_ms), batch_rows):
        stop = min(start + batch_rows, len(times_ms))
        newest_ms = int(times_ms[stop - 1])
        yield Step(newest_ms, newest_ms, start, stop)


def online_steps(ends: NDArray[np.int64], watermarks_ms: NDArray[np.int64], config: LearningConfig) -> Iterator[Step]:
    """The steps of the learning loop: a full batch as soon as it waits, a smaller one when its interval ends.

    ``ends`` (R,) are where records end among the rows that are learned, ``watermarks_ms`` (R,) when they arrived. The
    last rows, which the loop would learn after everything was shown, are left out.
    """
    interval_ms = config.learn_interval_s * 1000.0
    start, before_ms = 0, 0
    for end, now_ms in zip(ends.tolist(), np.maximum.accumulate(watermarks_ms).tolist(), strict=True):
        while end - start >= config.learn_batch_rows:
            yield Step(before_ms, now_ms, start, start + config.learn_batch_rows)
            start += config.learn_batch_rows
        if now_ms // interval_ms > before_ms // interval_ms and end > start:
            yield Step(now_ms, now_ms, start, end)
            start = end
        before_ms = now_ms
