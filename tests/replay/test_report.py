"""The report: quality by local day and in all."""

from __future__ import annotations

import numpy as np
import pytest

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from replay.report import facts_table, outcomes, quality_table, report
from tests.stream.rig import example_rows

DAY_MS = 86_400_000
MIDNIGHT_MS = 1_650_816_000_000  # 2022-04-25 00:00 at UTC+8


def test_a_correction_turns_its_impression_into_a_click_and_adds_no_row() -> None:
    """One row a settled impression; corrections and conversions are not rows of their own."""
    rows = example_rows(
        6,
        seed=1,
        kind=np.array([SETTLED, SETTLED, SETTLED, SETTLED, CORRECTION, CONVERSION], np.uint8),
        label=np.array([0, 0, 1, 0, 1, 1], np.uint8),
        impression_id=np.array([11, 12, 13, 14, 12, 13], np.uint64),
    )
    found = outcomes(rows, np.zeros(6, np.float32))
    assert found.label.tolist() == [False, True, True, False]
    assert np.all(found.frozen_p == 0.5)


def test_days_are_local_and_add_up() -> None:
    """Rows fall into the local day of their display; the days' rows are all rows."""
    ts_ms = MIDNIGHT_MS + np.array([-1, 0, DAY_MS - 1, DAY_MS, DAY_MS + 5, 2 * DAY_MS - 1])
    rows = example_rows(6, seed=2, ts_ms=ts_ms, label=np.array([0, 1, 0, 1, 0, 1], np.uint8))
    found = report(outcomes(rows, rows.logit), utc_offset_h=8.0)
    assert [(day["date"], day["rows"]) for day in found.days] == [
        ("2022-04-24", 1),
        ("2022-04-25", 2),
        ("2022-04-26", 3),
    ]
    assert found.rows == 6


def test_the_qualities_are_those_of_the_served_and_of_the_frozen_predictions() -> None:
    """Perfect frozen logits give an AUC of 1; the calibrated p gives O/E, the raw logit its own."""
    label = np.array([0, 1, 0, 1], np.uint8)
    rows = example_rows(4, seed=3, label=label, p=np.full(4, 0.25, np.float32), logit=np.zeros(4, np.float32))
    found = report(outcomes(rows, np.where(label == 1, 4.0, -4.0).astype(np.float32)), utc_offset_h=0.0)
    assert found.frozen["auc"] == 1.0
    assert found.online["auc"] == 0.5
    assert found.online["observed_over_expected"] == pytest.approx(2.0)
    assert found.raw["observed_over_expected"] == pytest.approx(1.0)
    assert found.raw["log_loss"] == pytest.approx(np.log(2))


def test_the_tables_name_every_day_and_fact() -> None:
    """What the demo prints: a line pair a day, one for all, and the loop's own facts."""
    rows = example_rows(50, seed=4)
    found = report(outcomes(rows, rows.logit), utc_offset_h=0.0)
    found.facts.update(
        freshness_s={"p50": 0.1, "p99": 0.2, "count": 3}, versions_swapped=7, requests=50, events=60, wall_s=2.0,
        events_per_s=55.0, dead_letters=2, dead_letters_by_reason={"late": 2},
    )  # fmt: skip
    assert quality_table(found, "title").row_count == 2 * (len(found.days) + 1)
    assert facts_table(found).row_count == 6


def test_nothing_settled_is_an_error_not_an_empty_table() -> None:
    """A run of which nothing arrived must not look like a result."""
    with pytest.raises(ValueError, match="no impression was settled"):
        report(outcomes(example_rows(0, seed=5), np.zeros(0, np.float32)), utc_offset_h=0.0)
