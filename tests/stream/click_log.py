"""Displays and their clicks in event time, as records of one or more partitions, with a known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, EXPOSURE
from stream.records.examples import ExampleRows, concat
from tests.stream.pipeline import START_MS, example_rows

Record = tuple[int, int, ExampleRows, int]  # partition, offset, rows, watermark


def clicked_log(
    displays: int,
    rate: float,
    *,
    seed: int = 0,
    partitions: int = 1,
    displays_per_s: float = 50.0,
    delay_s: float = 3.0,
    lost_ms: Sequence[tuple[int, int]] = (),
) -> list[Record]:
    """Displays after START_MS with exponential click delays, one record a second and partition.

    Clicks that happen within a span of ``lost_ms`` (after START_MS) never come.
    """
    rng = np.random.default_rng(seed)
    shown_ms = START_MS + np.sort(rng.integers(0, int(displays / displays_per_s * 1000), displays))
    rows = replace(
        example_rows(displays, seed=seed, kind=np.full(displays, EXPOSURE)), ts_ms=shown_ms, known_ms=shown_ms
    )
    clicks = rows.take(np.flatnonzero(rng.random(displays) < rate))
    delay_ms = rng.exponential(delay_s * 1000, len(clicks)).astype(np.int64)
    clicks = clicks.with_event(CLICK, known_ms=clicks.ts_ms + delay_ms, delay_ms=delay_ms)
    lost = np.zeros(len(clicks), np.bool_)
    for first, end in lost_ms:
        lost |= (clicks.known_ms >= START_MS + first) & (clicks.known_ms < START_MS + end)
    return records(concat([rows, clicks.take(np.flatnonzero(~lost))]), partitions)


def records(rows: ExampleRows, partitions: int = 1, by_ms: NDArray[np.int64] | None = None) -> list[Record]:
    """The rows by the time at which they come (default: of what they tell), one record a second and partition.

    The watermark is that second's end.
    """
    by_ms = rows.known_ms if by_ms is None else by_ms
    order = np.argsort(by_ms, kind="stable")
    rows, second = rows.take(order), by_ms[order] // 1000
    where = rows.impression_id % np.uint64(partitions)
    found: list[Record] = []
    for number, at in enumerate(range(int(second[0]), int(second[-1]) + 1)):
        now = second == at
        found += [(p, number, rows.take(now & (where == p)), (at + 1) * 1000) for p in range(partitions)]
    return found
