"""The report of base training on rows that it did not learn: overall, by decile of p, by segment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.logistic import sigmoid
from learners.metrics.quality import Quality, quality
from learners.training.segments import Segment

_HEADING = f"{'rows':>10} {'CTR':>7} {'mean p':>7} {'AUC':>7} {'log loss':>9} {'NE':>7} {'O/E':>7}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Some rows under a name. Within a few rows the AUC says little; the O/E is what a segment is read for."""

    name: str
    click_rate: float
    mean_p: float
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineReport:
    """Slices of one set of rows; segments without rows in a value leave it out."""

    overall: Slice
    deciles: list[Slice]  # of p, ascending
    segments: dict[str, list[Slice]]

    def lines(self) -> Iterable[str]:
        """For people."""
        yield f"{_HEADING}  holdout"
        yield _line(self.overall)
        for title, slices in (
            ("by decile of p", self.deciles),
            *((f"by {name}", s) for name, s in self.segments.items()),
        ):
            yield ""
            yield f"{_HEADING}  {title}"
            yield from map(_line, slices)

    def plain(self) -> dict[str, Any]:
        """For JSON; figures that do not exist are None."""
        return {
            "overall": _plain(self.overall),
            "deciles": [_plain(one) for one in self.deciles],
            "segments": {name: [_plain(one) for one in slices] for name, slices in self.segments.items()},
        }


def offline_report(
    logits: NDArray[np.float32], clicked: NDArray[np.bool_], segments: Sequence[Segment]
) -> OfflineReport:
    """Of N predicted logits, labels and ways to cut the rows.

    A decile holds a tenth of the rows; rows of one logit may lie on both sides of its bound.
    """
    tenths = np.array_split(np.argsort(logits, kind="stable"), 10)
    deciles = [_slice(_range_of(logits[rows]), logits[rows], clicked[rows]) for rows in tenths if len(rows)]
    cut = {}
    for name, values, codes in segments:
        masks = ((value, codes == code) for code, value in enumerate(values))
        cut[name] = [_slice(value, logits[mask], clicked[mask]) for value, mask in masks if mask.any()]
    return OfflineReport(overall=_slice("all", logits, clicked), deciles=deciles, segments=cut)


def plain_quality(of: Quality) -> dict[str, float | None]:
    """For JSON: NaN is None."""
    return {name: None if math.isnan(value) else value for name, value in asdict(of).items()}


QUALITY_HEADING = f"{'rows':>10} {'AUC':>7} {'log loss':>9} {'NE':>7} {'O/E':>7}"


def quality_line(name: str, of: Quality) -> str:
    """A line under ``QUALITY_HEADING``."""
    return f"{of.rows:10d} {of.auc:7.4f} {of.log_loss:9.4f} {of.ne:7.4f} {of.observed_over_expected:7.3f}  {name}"


def _slice(name: str, logits: NDArray[np.float32], clicked: NDArray[np.bool_]) -> Slice:
    return Slice(
        name=name,
        click_rate=float(clicked.mean()),
        mean_p=float(sigmoid(logits).mean()),
        quality=quality(logits, clicked),
    )


def _range_of(logits: NDArray[np.float32]) -> str:
    low, high = sigmoid(logits[[0, -1]])
    return f"{low:.4f}..{high:.4f}"


def _line(one: Slice) -> str:
    of = one.quality
    figures = f"{of.rows:10d} {one.click_rate:7.4f} {one.mean_p:7.4f} {of.auc:7.4f} {of.log_loss:9.4f}"
    return f"{figures} {of.ne:7.4f} {of.observed_over_expected:7.3f}  {one.name}"


def _plain(one: Slice) -> dict[str, Any]:
    return {"name": one.name, "click_rate": one.click_rate, "mean_p": one.mean_p, **plain_quality(one.quality)}
