"""Progressive metrics of a stream in bounded memory: of the last rows, of each local day, of everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from learners.metrics import Floats, Labels, Quality, divided, entropy, losses, probability, quality

_BINS = 4096
_LOGIT_BOUND = 8.0  # beyond it lie probabilities under 0.03 %; they share the end bins
_DAY_MS = 86_400_000


@dataclass(slots=True)
class BinnedQuality:
    """Sums of a growing set of rows. All figures are exact but the AUC: logits of one bin count as ties.

    The AUC errs by at most half the share of (click, non-click) pairs that fall into one bin: with 4096 bins of 0.004
    in logit about 0.0003 on logits that spread over a unit.
    """

    rows: int = 0
    clicks: int = 0
    loss: float = 0.0
    expected: float = 0.0  # sum of probabilities
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, _BINS), np.int64))  # label x logit bin

    def add(self, logits: Floats, labels: Labels, probabilities: Floats) -> None:
        """Count B rows in."""
        clicked = labels.astype(np.bool_)
        self.rows += len(clicked)
        self.clicks += int(clicked.sum())
        self.loss += float(losses(logits, clicked).sum())
        self.expected += float(probabilities.sum(dtype=np.float64))
        scaled = (logits.astype(np.float64) + _LOGIT_BOUND) * (_BINS / (2 * _LOGIT_BOUND))
        bins = np.clip(scaled, 0, _BINS - 1).astype(np.int64)
        np.add.at(self.histogram, (clicked.astype(np.int64), bins), 1)

    def quality(self) -> Quality:
        """The figures so far."""
        others, clicks = self.histogram
        below = np.cumsum(others) - others  # non-clicks of lower bins
        ordered = float((clicks * (below + others / 2)).sum())
        loss = divided(self.loss, self.rows)
        return Quality(
            rows=self.rows,
            auc=divided(ordered, float(clicks.sum()) * float(others.sum())),
            log_loss=loss,
            ne=loss / entropy(divided(self.clicks, self.rows)),
            observed_over_expected=divided(self.clicks, self.expected),
        )


class ProgressiveMetrics:
    """Feed it every settled row once, with the logit that was served.

    Parameters
    ----------
    window_rows
        Rows of the sliding window; its figures are exact.
    utc_offset_s
        Where the local day begins, as in the feature spec.
    kept_days
        Older days are dropped from ``days`` (not from ``total``); a day holds 64 kB.
    """

    def __init__(self, *, window_rows: int = 20_000, utc_offset_s: int = 0, kept_days: int = 35) -> None:
        self.total_sums = BinnedQuality()
        self._days: dict[int, BinnedQuality] = {}
        self._offset_ms, self._kept_days = utc_offset_s * 1000, kept_days
        self._window = np.zeros((3, window_rows), np.float64)  # logit, label, probability: a ring
        self._added = 0

    def add(self, ts_ms: NDArray[np.int64], logits: Floats, labels: Labels, p: Floats | None = None) -> None:
        """Count B rows in: display times, served logits, labels and served probabilities (default: of the logits)."""
        expected = probability(logits) if p is None else p
        self.total_sums.add(logits, labels, expected)
        days = (ts_ms + self._offset_ms) // _DAY_MS
        for day in np.unique(days).tolist():
            of_day = days == day
            sums = self._days.setdefault(day, BinnedQuality())
            sums.add(logits[of_day], labels[of_day], expected[of_day])
        for day in sorted(self._days)[: -self._kept_days]:
            del self._days[day]
        self._remember(np.stack([logits.astype(np.float64), labels.astype(np.float64), expected.astype(np.float64)]))

    def _remember(self, rows: NDArray[np.float64]) -> None:
        size = self._window.shape[1]
        skipped = max(0, rows.shape[1] - size)
        places = np.arange(self._added + skipped, self._added + rows.shape[1]) % size
        self._window[:, places] = rows[:, skipped:]
        self._added += rows.shape[1]

    def window(self) -> Quality:
        """Exact figures of the last ``window_rows`` rows."""
        logits, labels, p = self._window[:, : self._added]
        return quality(logits, labels, p)

    def days(self) -> dict[date, Quality]:
        """Figures of each local day, in order."""
        epoch = datetime.fromtimestamp(0, UTC).date()
        return {epoch + timedelta(days=day): self._days[day].quality() for day in sorted(self._days)}

    def total(self) -> Quality:
        """Figures of everything since the start."""
        return self.total_sums.quality()
