"""Measures of calibration against plain sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.reliability import expected_calibration_error, observed_over_expected, reliability_table

predictions = st.lists(
    st.tuples(st.booleans(), st.one_of(st.sampled_from([0.25, 0.5]), st.floats(1e-6, 1))),
    min_size=1,
    max_size=60,
)


@given(predictions, st.integers(1, 12))
def test_table_groups_every_row_once_by_rising_probability(drawn: list[tuple[bool, float]], bins: int) -> None:
    """Groups are a partition of the rows sorted by p; equal p stay together; each holds its rows' plain means."""
    labels, p = (np.array(column) for column in zip(*drawn, strict=True))
    table = reliability_table(labels, p, bins)
    assert 1 <= len(table) <= bins
    order = np.argsort(p, kind="stable")
    done = 0
    for group in table:
        members = order[done : done + group.rows]
        done += group.rows
        assert group.mean_p == pytest.approx(p[members].mean())
        if done < len(p):
            assert p[members[-1]] < p[order[done]]
    assert done == len(p)
    assert sum(group.rows * group.observed_rate for group in table) == pytest.approx(labels.sum())


def test_distinct_probabilities_fall_into_equal_groups() -> None:
    """A hundred distinct probabilities make ten groups of ten."""
    table = reliability_table(np.zeros(100, np.bool_), np.linspace(0.01, 1, 100))
    assert [group.rows for group in table] == [10] * 10


def test_observed_over_expected_is_clicks_over_promises() -> None:
    """Weights count rows; the ratio of nothing is NaN, of a click never promised inf."""
    labels, p = np.array([True, False]), np.array([0.5, 0.25])
    assert observed_over_expected(labels, p) == pytest.approx(1 / 0.75)
    assert observed_over_expected(labels, p, np.array([2.0, 1.0])) == pytest.approx(2 / 1.25)
    assert math.isnan(observed_over_expected(labels[:0], p[:0]))
    assert math.isnan(observed_over_expected(~labels[:1], np.zeros(1)))
    assert observed_over_expected(labels[:1], np.zeros(1)) == math.inf


def test_calibration_error_weighs_the_gap_of_each_group() -> None:
    """Three rows off by 0.25 and one off by 0.9: a mean of 0.4125."""
    labels, p = np.array([True, False, False, True]), np.array([1 / 12, 1 / 12, 1 / 12, 0.1])
    assert expected_calibration_error(labels, p, bins=4) == pytest.approx((3 * 0.25 + 0.9) / 4)
    assert math.isnan(expected_calibration_error(labels[:0], p[:0]))


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_value_that_is_no_probability_is_named(bad: float) -> None:
    """The error gives value and row."""
    with pytest.raises(ValueError, match=f"p={bad} at row 1"):
        observed_over_expected(np.array([True, True]), np.array([0.5, bad]))


def test_shapes_and_bins_are_checked() -> None:
    """Unpaired columns and an empty table raise."""
    with pytest.raises(ValueError, match="one length"):
        reliability_table(np.zeros(2, np.bool_), np.zeros(3))
    with pytest.raises(ValueError, match="must match"):
        observed_over_expected(np.zeros(2, np.bool_), np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="bins=0"):
        reliability_table(np.zeros(2, np.bool_), np.zeros(2), 0)
