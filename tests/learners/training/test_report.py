"""The offline report."""

from __future__ import annotations

import json

import numpy as np

from learners.metrics.quality import quality
from learners.training.report import offline_report
from learners.training.segments import Segment

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.standard_normal(105).astype(np.float32)
CLICKED = GENERATOR.random(105) < 1 / (1 + np.exp(-LOGITS))
TAB = Segment("tab", ["0", "1", "2"], np.arange(105) % 2)


def test_every_row_is_in_one_decile_and_one_value_of_each_segment() -> None:
    """Figures are those of the rows; values without rows are left out."""
    report = offline_report(LOGITS, CLICKED, [TAB])
    assert report.overall.quality == quality(LOGITS, CLICKED)
    assert [one.quality.rows for one in report.deciles] == [11] * 5 + [10] * 5
    assert [one.name for one in report.segments["tab"]] == ["0", "1"]
    assert report.segments["tab"][1].quality == quality(LOGITS[1::2], CLICKED[1::2])


def test_deciles_ascend_and_name_their_bounds() -> None:
    """From the least to the greatest probability."""
    deciles = offline_report(LOGITS, CLICKED, []).deciles
    means = [one.mean_p for one in deciles]
    assert means == sorted(means)
    least = 1 / (1 + np.exp(-float(LOGITS.min())))
    assert deciles[0].name.startswith(f"{least:.4f}..")


def test_text_and_json_hold_the_same_rows() -> None:
    """Figures that do not exist are null in JSON."""
    report = offline_report(LOGITS, np.zeros(105, np.bool_), [TAB])
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["overall"]["auc"] is None
    assert plain["segments"]["tab"][0]["rows"] == 53
    lines = list(report.lines())
    assert sum(line.endswith("  by tab") for line in lines) == 1
    assert len([line for line in lines if line]) == 3 + 1 + 10 + 2 + 1 - 1
