"""Which rows are learned, by which heads, and why others are not."""

from __future__ import annotations

import numpy as np

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from stream.learnable import faults, learnable
from tests.stream.rig import example_rows

KIND = np.array([SETTLED, SETTLED, CORRECTION, CONVERSION], np.uint8)
LABEL = np.array([0, 1, 1, 1], np.uint8)


def test_a_model_of_clicks_learns_settled_rows_and_corrections() -> None:
    """Conversions are no rows of it."""
    rows = example_rows(4, seed=1, kind=KIND, label=LABEL)
    assert learnable(rows, ["click"]).tolist() == [True, True, True, False]


def test_a_model_of_conversions_learns_them_too() -> None:
    """Every kind is a row of it."""
    rows = example_rows(4, seed=1, kind=KIND, label=LABEL)
    assert learnable(rows, ["click", "conversion"]).all()


def test_rows_with_faults_are_named_and_left_out() -> None:
    """Inputs that are not finite, labels beyond 1 and unknown kinds, each row once; the others are learned."""
    rows = example_rows(6, seed=1, label=np.array([0, 2, 1, 7, 1, 0], np.uint8))
    rows.dense[3, 1], rows.dense[5, 0] = np.inf, np.nan
    rows.kind[4] = 9
    found = faults(rows)
    assert [(fault.reason, fault.rows.tolist()) for fault in found] == [
        ("not_finite", [3, 5]),
        ("label", [1]),
        ("schema", [4]),
    ]
    assert found[0].detail == "2 of 6 rows have dense inputs that are not finite; the first is row 3"
    assert found[1].detail == "1 of 6 rows have a label that is neither 0 nor 1; the first is row 1 with label 2"
    assert "row 4 with kind 9" in found[2].detail
    assert learnable(rows, ["click", "conversion"]).tolist() == [True, False, True, False, False, False]
