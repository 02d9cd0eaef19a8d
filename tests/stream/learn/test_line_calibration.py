"""The state that a new line brings: logits of its own, counted before they were learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from calibration.head import HeadCalibration
from calibration.logistic import sigmoid
from calibration.merged import map_of
from calibration.slices import SlicePlan
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.rows import Rows
from stream.learn.line_calibration import LineCalibration
from stream.records.examples import ExampleRows, concat
from tests.stream.pipeline import SPEC, START_MS, example_rows

NO_SLICES = SlicePlan()


class TooSure:
    """Scores with twice the log-odds that are true, which stand in the first dense input."""

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Both heads, the click's first."""
        click = -1.0 + 2.0 * rows.dense[:, 0]
        return np.stack([click, np.full_like(click, np.nan)], axis=1)


def tail(minutes: int) -> list[ExampleRows]:
    """A log of 100 displays a second, served with one logit for all; their clicks come three seconds later."""
    random, displays, clicks = np.random.default_rng(0), [], []
    for second in range(60 * minutes):
        shown = example_rows(100, seed=second, kind=np.full(100, EXPOSURE, np.uint8), logit=np.full(100, 9, np.float32))
        shown = replace(shown, ts_ms=START_MS + 1000 * second + np.arange(100) * 10)
        clicked = random.random(100) < sigmoid(-1.0 + shown.dense[:, 0])
        displays.append(shown)
        clicks.append(shown.take(clicked).with_event(CLICK, delay_ms=np.full(clicked.sum(), 3_000)))
    return displays[:3] + [concat([now, before]) for now, before in zip(displays[3:], clicks[:-3], strict=True)]


def test_the_map_of_a_line_is_fitted_to_its_own_logits_not_to_those_that_were_served() -> None:
    """A base that is too sure is corrected from its first minute on."""
    brought = LineCalibration(NO_SLICES)
    for second, rows in enumerate(tail(5)):
        value = rows.to_record(SPEC.hash, START_MS + 1000 * second).encode()
        brought.observe(value, SPEC, TooSure())
    state = brought.to_bytes()
    assert state is not None
    curve = map_of([HeadCalibration.from_bytes(state, NO_SLICES)])
    grid = np.linspace(-3, 1, 9)
    true = -1.0 + (grid + 1.0) / 2
    assert np.abs(curve.log_odds_of(grid) - true).max() < 0.5 * np.abs(grid - true).max()


def test_clicks_count_with_the_logit_of_their_exposure() -> None:
    """Whatever the model says of the same row by then; clicks and conversions without an exposure are left out."""
    shown = example_rows(5, seed=1, kind=np.full(5, EXPOSURE, np.uint8))
    one = LineCalibration(NO_SLICES, CalibratorConfig())
    logit = np.array([-2, -1, 0, 1, np.nan], np.float32)
    one.count(shown, logit, START_MS)
    others = example_rows(2, seed=2, kind=np.array([CLICK, CONVERSION]))
    clicks = concat([shown.take(slice(2, 5)).with_event(CLICK), others])
    one.count(clicks, np.zeros(0, np.float32), START_MS + 90_000)
    table = one.head.evidence.table
    clicked = table.bins()[table.sums()[:, 1] > 0]
    assert clicked.tolist() == [48, 52]
    assert (one.head.exposures, one.head.events) == (4, 2)


def test_nothing_counted_brings_nothing() -> None:
    """A record of something else says nothing."""
    one = LineCalibration(NO_SLICES)
    one.observe(b"{}", SPEC, TooSure())
    assert one.to_bytes() is None
