"""The report: quality by local day and in all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from replay.report import Outcomes, displayed, facts_table, outcomes, quality_table, report
from stream.records.examples import ExampleRows, concat
from tests.stream.pipeline import example_rows

DAY_MS = 86_400_000
MIDNIGHT_MS = 1_650_816_000_000  # 2022-04-25 00:00 at UTC+8


def shown(count: int, seed: int, clicked: list[int] | None = None, **columns: Any) -> ExampleRows:
    """Exposures, and the clicks of some of them."""
    kind = np.full(count, EXPOSURE, np.uint8)
    rows = example_rows(count, seed, kind=kind, **columns)
    of = rows.take(np.flatnonzero(clicked if clicked is not None else np.arange(count) % 3 == 0))
    return concat((rows, of.with_event(CLICK, known_ms=of.ts_ms + 7_000)))


def found_in(rows: ExampleRows, frozen: list[float] | None = None) -> Outcomes:
    """The outcomes of a run's examples; the frozen logits are those of the exposures in order of display."""
    found = displayed(rows)
    return outcomes(found, found.rows.logit if frozen is None else np.array(frozen, np.float32))


def test_a_click_is_its_impressions_and_adds_no_row() -> None:
    """One row an impression in the order of display; a click or conversion may stand anywhere after it."""
    rows = example_rows(
        6,
        seed=1,
        kind=np.array([EXPOSURE, EXPOSURE, CLICK, EXPOSURE, EXPOSURE, CONVERSION], np.uint8),
        impression_id=np.array([11, 12, 12, 14, 13, 12], np.uint64),
        ts_ms=np.array([10, 20, 20, 40, 30, 20]),
    )
    found = displayed(rows)
    assert found.rows.impression_id.tolist() == [11, 12, 13, 14]
    assert found.clicked.tolist() == found.converted.tolist() == [False, True, False, False]
    assert np.all(outcomes(found, np.zeros(4, np.float32)).frozen_p == 0.5)


def test_days_are_local_and_add_up() -> None:
    """Rows fall into the local day of their display; the days' rows are all rows."""
    ts_ms = MIDNIGHT_MS + np.array([-1, 0, DAY_MS - 1, DAY_MS, DAY_MS + 5, 2 * DAY_MS - 1])
    found = report(found_in(shown(6, 2, [0, 1, 0, 1, 0, 1], ts_ms=ts_ms)), utc_offset_h=8.0)
    assert [(day["date"], day["rows"]) for day in found.days] == [
        ("2022-04-24", 1),
        ("2022-04-25", 2),
        ("2022-04-26", 3),
    ]
    assert found.rows == 6


def test_the_qualities_are_those_of_the_served_and_of_the_frozen_predictions() -> None:
    """Perfect frozen logits give an AUC of 1; the calibrated p gives O/E, the raw logit its own."""
    rows = shown(4, 3, [0, 1, 0, 1], p=np.full(4, 0.25, np.float32), logit=np.zeros(4, np.float32))
    found = report(found_in(rows, [-4.0, 4.0, -4.0, 4.0]), utc_offset_h=0.0)
    assert found.frozen["auc"] == 1.0
    assert found.online["auc"] == 0.5
    assert found.online["observed_over_expected"] == pytest.approx(2.0)
    assert found.raw["observed_over_expected"] == pytest.approx(1.0)
    assert found.raw["log_loss"] == pytest.approx(np.log(2))


def test_conversions_are_judged_among_clicks_and_their_rate_over_all_displays() -> None:
    """Four displays, two clicked, one of them converted; without such a head there is nothing to say."""
    p, of_click = np.full(4, 0.5, np.float32), np.array([0.9, 0.6, 0.1, 0.2], np.float32)
    rows = shown(4, 3, [0, 1, 0, 1], p=p, conversion_p=of_click)
    rows = concat((rows, rows.take(slice(1, 2)).with_event(CONVERSION)))
    found = report(found_in(rows), utc_offset_h=0.0)
    assert found.conversion is not None
    assert (found.conversion["rows"], found.conversion["auc"]) == (2, 1.0)
    assert found.conversion["log_loss"] == pytest.approx(-(np.log(0.6) + np.log(0.8)) / 2)
    assert found.conversion["observed_over_expected"] == pytest.approx(1 / (0.5 * 1.8))
    assert found.to_json()["conversion"] == found.conversion
    assert quality_table(found, "title").row_count == 5
    nothing = report(found_in(shown(4, 3, conversion_p=np.full(4, np.nan, np.float32))), utc_offset_h=0.0)
    assert nothing.conversion is None
    assert "conversion" not in nothing.to_json()


def test_the_tables_name_every_day_and_fact() -> None:
    """What the demo prints: a line pair a day, one for all, and the loop's own facts."""
    found = report(found_in(shown(50, 4, conversion_p=np.full(50, np.nan, np.float32))), utc_offset_h=0.0)
    found.facts.update(
        freshness_s={"p50": 0.1, "p99": 0.2, "count": 3}, versions_swapped=7, requests=50, events=60, wall_s=2.0,
        events_per_s=55.0, dead_letters=2, dead_letters_by_reason={"late": 2},
    )  # fmt: skip
    assert quality_table(found, "title").row_count == 2 * (len(found.days) + 1)
    assert facts_table(found).row_count == 6


def test_nothing_displayed_is_an_error_not_an_empty_table() -> None:
    """A run of which nothing arrived must not look like a result."""
    with pytest.raises(ValueError, match="no impression was displayed"):
        report(found_in(example_rows(0, seed=5)), utc_offset_h=0.0)
