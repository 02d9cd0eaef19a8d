"""Which rows are learned, by which heads, and why others are not."""

from __future__ import annotations

import numpy as np
import pytest

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.records.validity import faults, learnable, sampled, term_weight
from tests.stream.pipeline import example_rows

KIND = np.array([EXPOSURE, EXPOSURE, CLICK, CONVERSION], np.uint8)


def test_a_model_of_clicks_learns_exposures_and_clicks() -> None:
    """Conversions are no rows of it."""
    rows = example_rows(4, seed=1, kind=KIND)
    assert learnable(rows, ["click"]).tolist() == [True, True, True, False]


def test_a_model_of_conversions_learns_them_too() -> None:
    """Every kind is a row of it."""
    rows = example_rows(4, seed=1, kind=KIND)
    assert learnable(rows, ["click", "conversion"]).all()


def test_rows_with_faults_are_named_and_left_out() -> None:
    """Inputs that are not finite and unknown kinds, each row once; the others are learned."""
    rows = example_rows(6, seed=1, kind=np.zeros(6, np.uint8))
    rows.dense[3, 1], rows.dense[5, 0] = np.inf, np.nan
    rows.kind[4] = rows.kind[5] = 9
    found = faults(rows)
    assert [(fault.reason, fault.rows.tolist()) for fault in found] == [("not_finite", [3, 5]), ("schema", [4])]
    assert found[0].detail == "2 of 6 rows have dense inputs that are not finite, or beyond 10000; the first is row 3"
    assert found[1].detail == "1 of 6 rows have an unknown kind of example; the first is row 4 with kind 9"
    assert learnable(rows, ["click", "conversion"]).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.025])
def test_exposures_are_drawn_by_their_impression_and_clicks_all_kept(rate: float) -> None:
    """The draw is the same wherever a row stands, near the rate, and what is kept stands for all."""
    kind = np.array([EXPOSURE, EXPOSURE, EXPOSURE, CLICK, CONVERSION] * 20_000, np.uint8)
    rows = example_rows(len(kind), seed=1, kind=kind)
    kept = sampled(rows, rate)
    assert kept[kind != EXPOSURE].all()
    assert kept[kind == EXPOSURE].mean() == pytest.approx(rate, rel=0.1)
    order = np.random.default_rng(0).permutation(len(kind))
    assert (sampled(rows.take(order), rate) == kept[order]).all()
    weight = term_weight(kind, rate)
    assert weight[kept & (kind == EXPOSURE)].sum() == pytest.approx(60_000, rel=0.1)
    assert (weight[kind != EXPOSURE] == 1).all()
