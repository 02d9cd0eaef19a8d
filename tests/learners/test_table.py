"""HashedTable against a dictionary of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.table import MAX_LOOKUPS, HashedTable


def table(rows: int = 32, dim: int = 3, seed: int = 1) -> HashedTable:
    """A small table."""
    return HashedTable(rows=rows, dim=dim, seed=seed, init_scale=0.1)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    """Start values are a function of the seed alone."""
    assert np.array_equal(table(seed=1).values, table(seed=1).values)
    assert not np.array_equal(table(seed=1).values, table(seed=2).values)


def test_keys_spread_over_all_rows() -> None:
    """Regular keys do not crowd: 4096 consecutive keys hit at least half of 2048 rows, and none outside them."""
    rows = table(rows=2048).rows_of(np.arange(1, 4097, dtype=np.uint64))
    assert rows.min() >= 1
    assert rows.max() <= 2048
    assert len(np.unique(rows)) > 1024


def test_the_missing_key_is_a_zero_row_that_learns_nothing() -> None:
    """Key 0 gathers zeros, before and after an update that includes it."""
    t = table()
    rows = t.rows_of(np.array([[0, 7]], np.uint64))
    t.update(t.summed(rows, torch.ones((1, 2, 4))), rates=(0.1, 0.2), epsilon=1e-8)
    assert rows[0, 0] == 0
    assert not t.gather(rows)[0, 0].any()
    assert len(t) == 1


def test_a_batch_of_missing_keys_changes_nothing() -> None:
    """An update without any present key leaves the table untouched."""
    t = table()
    t.update(t.summed(np.zeros((2, 2), np.int64), torch.ones((2, 2, 4))), rates=(0.1, 0.2), epsilon=1e-8)
    assert len(t) == 0
    assert len(t.take_changed()) == 0


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_update_equals_adagrad_row_by_row(seed: int, batch: int, fields: int, steps: int) -> None:
    """Duplicates count once, with their summed gradient, as in a loop over rows."""
    generator = np.random.default_rng(seed)
    t = table(rows=8)
    values, accumulators = t.values.astype(np.float64), np.zeros((9, 2))
    for _ in range(steps):
        rows = generator.integers(0, 9, (batch, fields))
        gradients = generator.standard_normal((batch, fields, 4)).astype(np.float32)
        t.update(t.summed(rows, torch.from_numpy(gradients)), rates=(0.1, 0.2), epsilon=1e-8)
        for row in range(1, 9):
            if (rows == row).any():
                total = gradients[rows == row].astype(np.float64).sum(0)
                accumulators[row] += (total[:3] ** 2).mean(), total[3] ** 2
                scale = np.array([0.1, 0.2]) / (np.sqrt(accumulators[row]) + 1e-8)
                values[row] -= np.array([scale[0]] * 3 + [scale[1]]) * total
    np.testing.assert_allclose(t.values, values, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(t.accumulators, accumulators, rtol=1e-3, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 32), min_size=1, max_size=6), max_size=5))
def test_take_changed_lists_each_row_changed_since_the_last_call_once(history: list[list[int]]) -> None:
    """Changed rows come ascending, without repetition, and are forgotten afterwards."""
    t = table()
    for rows in history:
        t.assign(np.unique(rows), np.ones((len(set(rows)), 4), np.float32))
        assert t.take_changed().tolist() == sorted(set(rows))
    assert t.take_changed().tolist() == []


def test_restore_continues_where_state_was_taken() -> None:
    """Values, accumulators, touched and pending rows survive."""
    t = table()
    rows = t.rows_of(np.array([[3, 9, 27]], np.uint64))
    t.update(t.summed(rows, torch.ones((1, 3, 4))), rates=(0.1, 0.2), epsilon=1e-8)
    copy = table()
    copy.restore(t.state())
    assert np.array_equal(copy.values, t.values)
    assert np.array_equal(copy.accumulators, t.accumulators)
    assert np.array_equal(copy.take_changed(), t.take_changed())
    assert len(copy) == len(t)


def test_a_state_does_not_alias_the_table() -> None:
    """Learning on leaves an earlier state as it was."""
    t = table()
    t.assign(np.array([4]), np.ones((1, 4), np.float32))
    state = t.state()
    t.assign(np.array([4]), np.zeros((1, 4), np.float32))
    assert state.values.tolist() == [[1, 1, 1, 1]]


def test_a_state_of_a_larger_table_is_refused() -> None:
    """A row index beyond the table is an error that names both."""
    big = table(rows=64)
    big.assign(np.array([60]), np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match=r"row 60 .* table of 33 rows"):
        table(rows=32).restore(big.state())


@pytest.mark.parametrize("rows", [0, 1, 3, 100])
def test_a_size_that_is_no_power_of_two_is_refused(rows: int) -> None:
    """The message names the size and one that works."""
    with pytest.raises(ValueError, match=rf"table_rows={rows} must be a power of two.*Take \d+"):
        table(rows=rows)


def test_a_batch_of_too_many_lookups_is_refused() -> None:
    """Positions that do not fit the sort key are an error, not a wrong sum."""
    rows = np.ones((1, MAX_LOOKUPS + 1), np.int64)
    with pytest.raises(ValueError, match="exceeds"):
        table().summed(rows, torch.ones((1, MAX_LOOKUPS + 1, 4)))
