"""Progressive metrics against the exact ones over the same rows."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.metrics import probability, quality
from learners.progressive import BinnedQuality, ProgressiveMetrics

DAY_MS = 86_400_000


def rows(seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits of about N(0, 1.5) and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, count).astype(np.float32)
    return logits, (generator.random(count) < probability(logits)).astype(np.uint8)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 40))
@settings(deadline=None)
def test_the_window_is_exactly_the_last_rows(seed: int, sizes: list[int], window_rows: int) -> None:
    """However the rows were batched, its figures are those of the last rows."""
    logits, labels = rows(seed, sum(sizes))
    tracked = ProgressiveMetrics(window_rows=window_rows)
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        part = slice(int(start), int(start) + size)
        tracked.add(np.zeros(size, np.int64), logits[part], labels[part])
    last = slice(max(0, len(labels) - window_rows), None)
    expected, found = quality(logits[last], labels[last]), tracked.window()
    assert found.rows == expected.rows
    for name in ("auc", "log_loss", "ne", "observed_over_expected"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), nan_ok=True)


@given(st.integers(0, 2**32), st.integers(2, 400))
@settings(deadline=None)
def test_the_binned_auc_stays_within_its_bound_and_the_rest_is_exact(seed: int, count: int) -> None:
    """It errs by at most half the share of pairs that lie in one bin."""
    logits, labels = rows(seed, count)
    sums = BinnedQuality()
    sums.add(logits, labels, probability(logits))
    expected, found = quality(logits, labels), sums.quality()
    pairs = float(labels.sum()) * float((1 - labels).sum())
    if pairs:
        same_bin = float((sums.histogram[0] * sums.histogram[1]).sum()) / pairs
        assert abs(found.auc - expected.auc) <= same_bin / 2 + 1e-12
    assert found.log_loss == pytest.approx(expected.log_loss)
    assert found.ne == pytest.approx(expected.ne, nan_ok=True)
    assert found.observed_over_expected == pytest.approx(expected.observed_over_expected)


def test_days_are_local_and_the_total_is_all_of_them() -> None:
    """With an offset of eight hours 16:00 UTC begins the next day."""
    logits, labels = rows(1, 6)
    before, after = 16 * 3_600_000 - 1, 16 * 3_600_000
    tracked = ProgressiveMetrics(utc_offset_s=8 * 3600)
    tracked.add(np.array([before, before, after, after, after, after]), logits, labels)
    days = tracked.days()
    assert {day: of.rows for day, of in days.items()} == {date(1970, 1, 1): 2, date(1970, 1, 2): 4}
    assert days[date(1970, 1, 2)].log_loss == pytest.approx(quality(logits[2:], labels[2:]).log_loss)
    assert tracked.total().rows == 6


def test_served_probabilities_are_what_is_expected() -> None:
    """The O/E is that of the calibrated p where it is given."""
    logits, labels = np.zeros(4, np.float32), np.array([1, 0, 0, 0], np.uint8)
    tracked = ProgressiveMetrics()
    tracked.add(np.zeros(4, np.int64), logits, labels, np.full(4, 0.25, np.float32))
    assert tracked.total().observed_over_expected == pytest.approx(1)
    assert tracked.window().observed_over_expected == pytest.approx(1)


def test_old_days_are_dropped_and_stay_in_the_total() -> None:
    """Memory does not grow with the months."""
    tracked = ProgressiveMetrics(kept_days=2)
    for day in range(5):
        tracked.add(np.array([day * DAY_MS]), np.zeros(1, np.float32), np.ones(1, np.uint8))
    assert list(tracked.days()) == [date(1970, 1, 4), date(1970, 1, 5)]
    assert tracked.total().rows == 5


def test_before_any_row_the_figures_are_undefined() -> None:
    """No division by zero on the first page."""
    fresh = ProgressiveMetrics()
    assert fresh.window().rows == fresh.total().rows == 0
    assert fresh.days() == {}
