"""Two probabilities of the same labelled rows, before and after a correction: by decile and by slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibration.reliability import observed_over_expected

_LEAST_P: Final = 1e-7
MOST_VALUES: Final = 12
"""Of a slice that are shown: those with the most rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Some rows, and how well each probability fits them. NaN where there is nothing to tell it from."""

    name: str
    rows: int
    observed_rate: float
    mean_before: float
    mean_after: float
    observed_over_expected_before: float
    observed_over_expected_after: float
    log_loss_before: float
    log_loss_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Of all rows, of each group by quantile of the first probability, and of the values of each slice."""

    overall: Line
    deciles: list[Line]
    slices: dict[str, list[Line]]

    def as_json(self) -> dict[str, Any]:
        """By name; null for NaN."""
        return {
            "overall": _json(self.overall),
            "deciles": [_json(line) for line in self.deciles],
            "slices": {name: [_json(line) for line in lines] for name, lines in self.slices.items()},
        }

    def lines(self) -> list[str]:
        """For people."""
        names = f"{'rows':>10}{'observed':>10}{'before':>10}{'after':>10}{'O/E':>8}{'after':>8}"
        heading = f"{'':<22}{names}{'log loss':>10}{'after':>10}"
        out = [heading, _text(self.overall), *(_text(line) for line in self.deciles)]
        for name, lines in self.slices.items():
            out += ["", f"by {name}", *(_text(line) for line in lines)]
        return out


def compare(
    labels: NDArray[np.bool_],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    slices: Mapping[str, NDArray[Any]],
    bins: int = 10,
) -> Comparison:
    """Compare two probabilities of N rows.

    labels, before, after : (N,); slices : by name, a value a row. Raises ValueError where ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins={bins} must be 1 or more: there would be no table. 10 is customary.")
    everything = np.ones(len(labels), np.bool_)

    def line(name: str, at: NDArray[np.bool_]) -> Line:
        return _line(name, labels[at], before[at], after[at])

    deciles: list[Line] = []
    if len(labels):
        edges = np.unique(np.quantile(before, np.arange(1, bins) / bins, method="inverted_cdf"))
        group = np.searchsorted(edges, before, side="left")
        deciles = [line(f"p {before[group == k].max():.5f} and below", group == k) for k in np.unique(group)]
    by_slice: dict[str, list[Line]] = {}
    for name, values in slices.items():
        found, counts = np.unique(values, return_counts=True)
        largest = found[np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])]
        by_slice[name] = [line(str(value), values == value) for value in largest]
    return Comparison(overall=line("all", everything), deciles=deciles, slices=by_slice)


def _line(name: str, labels: NDArray[np.bool_], before: NDArray[np.float64], after: NDArray[np.float64]) -> Line:
    mean = np.mean if len(labels) else (lambda _: np.nan)
    return Line(
        name=name,
        rows=len(labels),
        observed_rate=float(mean(labels)),
        mean_before=float(mean(before)),
        mean_after=float(mean(after)),
        observed_over_expected_before=observed_over_expected(labels, before),
        observed_over_expected_after=observed_over_expected(labels, after),
        log_loss_before=_log_loss(labels, before),
        log_loss_after=_log_loss(labels, after),
    )


def _log_loss(labels: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    inside = np.clip(p, _LEAST_P, 1.0 - _LEAST_P)
    return float(-np.where(labels, np.log(inside), np.log1p(-inside)).mean()) if len(p) else float("nan")


def _json(line: Line) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in asdict(line).items()
    }


def _text(line: Line) -> str:
    return (
        f"{line.name[:21]:<22}{line.rows:>10}{line.observed_rate:>10.5f}"
        f"{line.mean_before:>10.5f}{line.mean_after:>10.5f}"
        f"{line.observed_over_expected_before:>8.3f}{line.observed_over_expected_after:>8.3f}"
        f"{line.log_loss_before:>10.5f}{line.log_loss_after:>10.5f}"
    )
