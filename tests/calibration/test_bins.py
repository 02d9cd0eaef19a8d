"""The bin sums: exact and mergeable."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.bins import BIN_LIMIT, MAX_ROW_WEIGHT, WEIGHT_SCALE, BinState, LogitGrid
from tests.calibration.rows import Rows, rows

GRID = LogitGrid(-4.0, 4.0, 16)


def state_of(batch: Rows) -> BinState:
    """A small-grid state that holds the batch."""
    state = BinState(GRID)
    state.add(*batch)
    return state


def test_grid_puts_a_logit_into_the_bin_whose_edges_enclose_it() -> None:
    """Each bin holds its lower edge and its centre, not its upper edge."""
    grid = LogitGrid()
    assert grid.index(grid.centres).tolist() == list(range(2048))
    assert grid.index(grid.edges[:-1]).tolist() == list(range(2048))
    assert grid.index(grid.centres).dtype == np.int32


def test_grid_clips_logits_beyond_its_ends() -> None:
    """The end bins take everything beyond the grid."""
    assert GRID.index(np.array([-99.0, -4.0, 3.99, 4.0, 3e38], np.float32)).tolist() == [0, 0, 15, 15, 15]


@pytest.mark.parametrize("bounds", [(1.0, 1.0, 8), (2.0, 1.0, 8), (float("nan"), 1.0, 8), (0.0, 1e3, 8), (0.0, 1.0, 0)])
def test_grid_without_useful_bins_is_refused(bounds: tuple[float, float, int]) -> None:
    """Empty, unbounded or binless grids raise."""
    with pytest.raises(ValueError, match=r"logit grid|bins="):
        LogitGrid(*bounds)


@given(rows())
def test_sums_equal_a_slow_sum_in_whole_units(batch: Rows) -> None:
    """Each bin holds the exact sum of its rows' weights, rounded row by row to 2**-20."""
    w, wy = [0] * GRID.bins, [0] * GRID.bins
    for logit, label, weight in zip(*batch, strict=True):
        at = min(max(int(np.floor((float(logit) + 4.0) * 2)), 0), GRID.bins - 1)
        units = round(Fraction(float(weight)) * WEIGHT_SCALE)
        w[at] += units
        wy[at] += units * int(label)
    state = state_of(batch)
    assert state.w.tolist() == w
    assert state.wy.tolist() == wy


@given(rows())
def test_no_weight_means_weight_one(batch: Rows) -> None:
    """Rows without weights count like rows of weight 1."""
    counted = BinState(GRID)
    counted.add(batch.logits, batch.labels)
    assert counted == state_of(batch._replace(weight=np.ones(len(batch.logits), np.float32)))


@given(rows(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_merged_workers_equal_one_worker_to_the_bit(batch: Rows, workers: int, random: object) -> None:
    """However rows are dealt to workers, and in whatever order these merge, one worker has the same sums."""
    states = [state_of(batch.part(i, None, workers)) for i in range(workers)]
    random.shuffle(states)  # type: ignore[attr-defined]
    merged = BinState(GRID)
    for state in states:
        merged.merge(state)
    assert merged == state_of(batch)


@pytest.mark.parametrize(
    ("logit", "label", "weight", "message"),
    [
        (float("nan"), 1, 1.0, "logit nan at row 1 is not finite"),
        (float("inf"), 1, 1.0, "logit inf at row 1"),
        (0.0, 2, 1.0, "label 2 at row 1"),
        (0.0, 1, -1.0, "weight -1.0 at row 1"),
        (0.0, 1, float("nan"), "weight nan at row 1"),
        (0.0, 1, MAX_ROW_WEIGHT * 2, "weight 2097152.0 at row 1"),
    ],
)
def test_bad_row_is_named_and_leaves_the_state_alone(logit: float, label: int, weight: float, message: str) -> None:
    """A batch with a bad row raises with value and row, and nothing of it is counted."""
    state = state_of(Rows(np.zeros(3, np.float32), np.ones(3, np.bool_), np.ones(3, np.float32)))
    before = (state.w.copy(), state.wy.copy())
    with pytest.raises(ValueError, match=message):
        state.add(np.array([0.0, logit]), np.array([1, label]), np.array([1.0, weight]))
    np.testing.assert_array_equal((state.w, state.wy), before)


def test_columns_of_unequal_length_are_refused() -> None:
    """Each logit needs its label and its weight."""
    two, three = np.zeros(2, np.float32), np.zeros(3, np.bool_)
    with pytest.raises(ValueError, match="one length"):
        BinState(GRID).add(two, three)
    with pytest.raises(ValueError, match="must match"):
        BinState(GRID).add(two, three[:2], np.ones(3, np.float32))


def test_merging_another_grid_is_refused() -> None:
    """Bins that mean different logits do not add."""
    with pytest.raises(ValueError, match="cannot merge"):
        BinState(GRID).merge(BinState(LogitGrid(-4.0, 4.0, 8)))


def test_bin_at_its_limit_refuses_more_and_stays() -> None:
    """A sum that could soon wrap raises instead, and keeps its value."""
    state = BinState(GRID)
    state.w[8] = BIN_LIMIT - 1
    with pytest.raises(OverflowError, match="would hold weight"):
        state.add(np.zeros(1, np.float32), np.ones(1, np.bool_))
    assert int(state.w[8]) == BIN_LIMIT - 1
