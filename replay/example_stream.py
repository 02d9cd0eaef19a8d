"""A dataset's labelled examples in the order in which they became known, and the learning steps they are cut into.

The displays come from the log (or, where a dataset shows the best few ads, from a random ranking), so they do not hang
on any model: the stream is collected once and any learner can be driven over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.spec import FeatureSpec
from replay.backtest import BacktestOptions, collect
from replay.progress import Progress
from replay.scenario import Scenario
from stream.examples import ExampleRows, concat
from stream.learning_config import LearningConfig
from stream.session_memory import MemorySessionStore


class Step(NamedTuple):
    """One learning step: rows ``start`` to ``stop`` of the span's learnable rows.

    ``watermark_ms`` is what a learner is told before it; what it taught serves impressions from ``from_ms`` on.
    """

    watermark_ms: int
    from_ms: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Span:
    """The examples of some days in order of arrival.

    Record i ends before row ``ends[i]`` and arrived when the watermark had reached ``watermarks_ms[i]``.
    """

    examples: ExampleRows
    ends: NDArray[np.int64]  # (R,)
    watermarks_ms: NDArray[np.int64]  # (R,)

    @classmethod
    def of(cls, records: Sequence[tuple[ExampleRows, int]]) -> Span:
        """From records with their watermarks. Raises ValueError for none at all."""
        if not records:
            raise ValueError("no impression was settled in these days: there is nothing to learn. Replay more days.")
        ends = np.cumsum([len(rows) for rows, _ in records])
        return cls(concat([rows for rows, _ in records]), ends, np.array([at for _, at in records], np.int64))

    def learnable(self) -> tuple[ExampleRows, NDArray[np.int64]]:
        """Settled rows and corrections, and where each record ends among them."""
        kept = self.examples.kind != CONVERSION
        counts = np.concatenate(([0], np.cumsum(kept)))
        return self.examples.take(kept), counts[self.ends]

    def settled(self) -> tuple[ExampleRows, NDArray[np.bool_]]:
        """Each displayed impression once, in order of settlement, and whether it was clicked in the end."""
        settled = np.flatnonzero(self.examples.kind == SETTLED)
        rows = self.examples.take(settled[np.argsort(self.examples.known_ms[settled], kind="stable")])
        corrected = self.examples.impression_id[self.examples.kind == CORRECTION]
        return rows, (rows.label == 1) | np.isin(rows.impression_id, corrected)

    def displayed(self) -> tuple[ExampleRows, NDArray[np.bool_]]:
        """The same in order of display."""
        rows, clicked = self.settled()
        order = np.argsort(rows.ts_ms, kind="stable")
        return rows.take(order), clicked[order]


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


def base_steps(rows: ExampleRows, batch_rows: int) -> Iterator[Step]:
    """Steps over the rows of base training: full batches in order of settlement, no clock."""
    for start in range(0, len(rows), batch_rows):
        stop = min(start + batch_rows, len(rows))
        known_ms = int(rows.known_ms[start:stop].max())
        yield Step(known_ms, known_ms, start, stop)


def online_steps(ends: NDArray[np.int64], watermarks_ms: NDArray[np.int64], config: LearningConfig) -> Iterator[Step]:
    """The steps of the learning loop: a full batch as soon as it waits, a smaller one when its interval ends.

    ``ends`` (R,) are where records end among the learnable rows, ``watermarks_ms`` (R,) when they arrived. The last
    rows, which the loop would learn after everything was shown, are left out.
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
