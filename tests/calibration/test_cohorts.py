"""Sums by cohort against sums over rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.cohorts import COHORT_MS, CohortTable, cohorts_of

ROW = st.tuples(st.integers(0, 4_000_000), st.integers(0, 5), st.integers(0, 1023), st.integers(-(2**40), 2**40))
BATCHES = st.lists(st.lists(ROW, min_size=1, max_size=20), min_size=1, max_size=6)


def arrays(rows: list[tuple[int, int, int, int]]) -> tuple[NDArray[np.int64], ...]:
    """Times, paths, bins and two sums of rows."""
    ts_ms, path, bins, value = np.array(rows, np.int64).T
    return ts_ms, path, bins, np.stack([value, np.ones_like(value)], axis=1)


def held(table: CohortTable) -> dict[tuple[int, int, int], tuple[int, ...]]:
    """What a table holds, by start, path and bin."""
    columns = (table.starts().tolist(), table.paths().tolist(), table.bins().tolist(), table.sums().tolist())
    return {(start, path, at): tuple(sums) for start, path, at, sums in zip(*columns, strict=True)}


@settings(deadline=None)
@given(BATCHES, st.integers(0, 5_000_000))
def test_a_table_is_the_sum_of_its_rows_by_cohort(batches: list[list[tuple[int, int, int, int]]], now_ms: int) -> None:
    """Whenever they came, before cohorts grew long or after."""
    table = CohortTable(2)
    wanted: Counter[tuple[int, int, int]] = Counter()
    rows_of: Counter[tuple[int, int, int]] = Counter()
    for at, batch in enumerate(batches):
        ts_ms, path, bins, sums = arrays(batch)
        table.add(ts_ms, path, bins, sums)
        table.advance(now_ms * (at + 1) // len(batches), keep_ms=10**9)
        starts = cohorts_of(ts_ms, now_ms)[0]
        for start, where, which, (value, one) in zip(
            starts.tolist(), path.tolist(), bins.tolist(), sums.tolist(), strict=True
        ):
            wanted[start, where, which] += value
            rows_of[start, where, which] += one
    table.advance(now_ms, keep_ms=10**9)
    assert held(table) == {key: (wanted[key], rows_of[key]) for key in rows_of}


@settings(deadline=None)
@given(BATCHES, st.integers(1, 5_000_000))
def test_tables_of_parallel_workers_merge_to_the_bits_of_one(
    batches: list[list[tuple[int, int, int, int]]], now_ms: int
) -> None:
    """And their bytes give them back."""
    whole, parts = CohortTable(2), [CohortTable(2), CohortTable(2)]
    for at, batch in enumerate(batches):
        whole.add(*arrays(batch))
        parts[at % 2].add(*arrays(batch))
        for table in (whole, *parts):
            table.advance(now_ms * (at + 1), keep_ms=2_000_000)
    merged = CohortTable(2)
    for table in parts:
        merged.merge(CohortTable.from_bytes(table.to_bytes()))
    merged.since_ms = whole.since_ms
    assert merged.to_bytes() == whole.to_bytes()
    assert held(CohortTable.from_bytes(whole.to_bytes())) == held(whole)


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=50), st.integers(0, 10**8))
def test_cohorts_hold_their_displays_and_never_overlap(times: list[int], now_ms: int) -> None:
    """Every time lies in its cohort, and those of one moment are one partition of time."""
    ts_ms = np.array(sorted(times), np.int64)
    start, length = cohorts_of(ts_ms, now_ms)
    assert ((start <= ts_ms) & (ts_ms < start + length)).all()
    assert (start % length == 0).all()
    differ = start[1:] != start[:-1]
    assert (start[1:][differ] >= (start + length)[:-1][differ]).all()
    assert (length[ts_ms > now_ms - 100_000] == COHORT_MS).all()


def test_what_ended_long_ago_is_dropped_and_counts_no_more() -> None:
    """A click of a display that is forgotten would have no exposure beside it."""
    table = CohortTable(2)
    old, new = arrays([(0, 0, 1, 5)]), arrays([(900_000, 0, 1, 7)])
    table.add(*old)
    table.add(*new)
    table.advance(1_000_000, keep_ms=500_000)
    table.add(*old)
    assert held(table) == {(900_000, 0, 1): (7, 1)}


@pytest.mark.parametrize("cut", [slice(0, 10), slice(0, -1), slice(4, None)])
def test_damaged_bytes_are_refused(cut: slice) -> None:
    """Cut short or with another beginning."""
    table = CohortTable(2)
    table.add(*arrays([(0, 0, 1, 5)]))
    with pytest.raises(ValueError, match="drop them"):
        CohortTable.from_bytes(table.to_bytes()[cut])


def test_tables_of_other_sums_do_not_add() -> None:
    """Two releases at once."""
    with pytest.raises(ValueError, match="of 3 and 2 sums"):
        CohortTable(2).merge(CohortTable(3))
