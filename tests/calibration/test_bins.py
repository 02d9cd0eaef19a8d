"""The bin sums: exact, mergeable, retractable."""

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
    assert merged.to_bytes() == state_of(batch).to_bytes()


@given(rows(), rows())
def test_retracted_rows_leave_no_trace(kept: Rows, taken: Rows) -> None:
    """Add then retract is bit-equal to never added."""
    state = state_of(kept)
    state.add(*taken)
    state.retract(*taken)
    assert state == state_of(kept)


@given(rows(), st.floats(0, 1))
def test_decay_multiplies_whole_units_towards_zero(batch: Rows, factor: float) -> None:
    """A decayed sum is its exact product with the factor in 1/2**32, cut towards zero; so are negative ones."""
    state = BinState(GRID)
    state.retract(*batch)
    held = state.w.tolist()
    state.decay(factor)
    assert state.w.tolist() == [-(-units * round(factor * 2**32) >> 32) for units in held]


def test_decay_is_exact_up_to_the_largest_sum() -> None:
    """The 64-bit product does not wrap at the limit of a bin."""
    state = BinState(LogitGrid(-1, 1, 1))
    state.w[0] = BIN_LIMIT - 1
    state.decay(0.75)
    assert int(state.w[0]) == (BIN_LIMIT - 1) * 3 // 4


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan")])
def test_decay_that_would_grow_or_flip_is_refused(factor: float) -> None:
    """Factors outside [0, 1] raise."""
    with pytest.raises(ValueError, match="decay factor"):
        BinState(GRID).decay(factor)


@given(rows())
def test_bytes_round_trip(batch: Rows) -> None:
    """A state survives its bytes, grid and all."""
    state = state_of(batch)
    assert BinState.from_bytes(state.to_bytes()) == state


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:10], "shorter than its"),
        (lambda data: b"????" + data[4:], "magic|starts with"),
        (lambda data: data[:4] + b"\x09\x00" + data[6:], "format 9"),
        (lambda data: data[:-1], "was cut"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "CRC"),
    ],
)
def test_damaged_bytes_are_refused(damage: object, message: str) -> None:
    """Short, foreign, cut and flipped bytes each raise with the reason."""
    with pytest.raises(ValueError, match=message):
        BinState.from_bytes(damage(BinState(GRID).to_bytes()))  # type: ignore[operator]


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
@pytest.mark.parametrize("verb", ["add", "retract"])
def test_bad_row_is_named_and_leaves_the_state_alone(
    verb: str, logit: float, label: int, weight: float, message: str
) -> None:
    """A batch with a bad row raises with value and row, and nothing of it is counted."""
    state = state_of(Rows(np.zeros(3, np.float32), np.ones(3, np.bool_), np.ones(3, np.float32)))
    before = state.to_bytes()
    with pytest.raises(ValueError, match=message):
        getattr(state, verb)(np.array([0.0, logit]), np.array([1, label]), np.array([1.0, weight]))
    assert state.to_bytes() == before


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


def test_copy_is_independent() -> None:
    """Adding to a copy leaves the original as it was."""
    state = BinState(GRID)
    twin = state.copy()
    twin.add(np.zeros(1, np.float32), np.ones(1, np.bool_))
    assert (state.total_weight, twin.total_weight) == (0.0, 1.0)


def test_observed_over_expected_compares_clicks_with_raw_promises() -> None:
    """Three clicks of four rows at logit 0 are 1.5 times the promised two; an empty state has no ratio."""
    state = BinState(LogitGrid(-1.0, 1.0, 1))
    assert np.isnan(state.observed_over_expected())
    state.add(np.zeros(4, np.float32), np.array([1, 1, 1, 0], np.bool_))
    assert state.observed_over_expected() == pytest.approx(1.5)
