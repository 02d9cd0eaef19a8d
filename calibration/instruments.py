"""O/E, normalised entropy, log loss and AUC of the served p, by cohort of display, early and mature.

A display counts when it is displayed, its click when it comes, both in the cohort of the display. Early figures compare
what came so far with what should have come so far, Σ p·F(age) by the measured delay law; mature ones look at cohorts
older than the click window. All are sums, so that those of several partitions add to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.bins import WEIGHT_SCALE
from calibration.cohorts import CohortTable
from calibration.delay_law import DelayLaw, merged_law
from calibration.logistic import logit
from calibration.slices import SlicePlan

Period = Literal["early", "mature"]
KEEP_MS: Final = 10_800_000
_LEAST_P: Final = 1e-7
_BINS_PER_LOG_ODD: Final = 4
_LOWEST_LOGIT: Final = -16.0
_BINS: Final = 128
_EXPOSURES, _EXPECTED, _CLICKS, _EXPOSURE_LOSS, _CLICK_LOSS = range(5)
_SUM_UNITS: Final = np.array([1, WEIGHT_SCALE, 1, 2**12, 2**10])
_AGES_IN_COHORT: Final = (np.arange(8) + 0.5) / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How good the served p was on the displays of a window. NaN where there is nothing to tell it from.

    expected : clicks that p promised; early, those of them that should have come by now.
    log_loss : nats a display, −[y log p + (1−y) log(1−p)]. normalised_entropy : it over that of the mean click rate;
        1 is no better than always saying that (He et al., Practical Lessons from Predicting Clicks on Ads, 2014).
    auc : ties within a quarter of a log-odd of the served logit count half.
    """

    slice: str  # "all", or the slice's name
    value: str  # "all", or the code or bucket
    period: Period
    window_s: int
    exposures: int
    clicks: int
    expected: float
    observed_over_expected: float
    log_loss: float
    normalised_entropy: float
    auc: float


class _Sums(NamedTuple):
    """Sums by path and bin of a window, floats; exposures weigh the share of their clicks that should have come."""

    paths: NDArray[np.int64]
    bins: NDArray[np.int64]
    sums: NDArray[np.float64]  # (M, 5)
    exposures: NDArray[np.int64]  # (M,) not weighed


class Instruments:
    """The sums of one examples partition."""

    def __init__(self, table: CohortTable | None = None) -> None:
        self.table = table or CohortTable(5)

    def add_exposures(self, ts_ms: NDArray[np.int64], paths: NDArray[np.int64], p: NDArray[np.float32]) -> None:
        """Displays at ``ts_ms``, served with ``p``, each (B,)."""
        p64 = _inside(p)
        units = np.zeros((len(p), 5), np.int64)
        units[:, _EXPOSURES] = 1
        units[:, _EXPECTED] = np.rint(p64 * _SUM_UNITS[_EXPECTED])
        units[:, _EXPOSURE_LOSS] = np.rint((-np.log1p(-p64) - p64) * _SUM_UNITS[_EXPOSURE_LOSS])  # less p: a small rest
        self.table.add(ts_ms, paths, _bins_of(p64), units)

    def add_clicks(self, ts_ms: NDArray[np.int64], paths: NDArray[np.int64], p: NDArray[np.float32]) -> None:
        """Clicks, by the time, path and p of their display."""
        p64 = _inside(p)
        units = np.zeros((len(p), 5), np.int64)
        units[:, _CLICKS] = 1
        units[:, _CLICK_LOSS] = np.rint(-logit(p64) * _SUM_UNITS[_CLICK_LOSS])
        self.table.add(ts_ms, paths, _bins_of(p64), units)

    def window(self, law: DelayLaw, period: Period, window_s: int, click_window_s: float) -> _Sums:
        """The sums of a window that ends now, or, mature, one click window ago."""
        table = self.table
        starts, lengths = table.starts(), table.lengths()
        end_ms = table.now_ms - (round(click_window_s * 1000) if period == "mature" else 0)
        inside = (starts + lengths <= end_ms) & (starts + lengths > end_ms - 1000 * window_s)
        starts, lengths = starts[inside], lengths[inside]
        sums = table.sums()[inside]
        found = sums / _SUM_UNITS
        found[:, _EXPOSURE_LOSS] += found[:, _EXPECTED]
        if period == "early":
            cohort = np.append(True, np.diff(starts) != 0)[: len(starts)]  # ascending: one share a cohort
            age = table.now_ms - starts[cohort, None] - lengths[cohort, None] * _AGES_IN_COHORT
            share = law.share(age).mean(axis=1)[np.cumsum(cohort) - 1]
            found[:, [_EXPOSURES, _EXPECTED, _EXPOSURE_LOSS]] *= share[:, None]
        return _Sums(table.paths()[inside], table.bins()[inside], found, sums[:, _EXPOSURES])


def figures(
    parts: Sequence[tuple[Instruments, DelayLaw]],
    plan: SlicePlan,
    *,
    click_window_s: float,
    windows_s: Sequence[int] = (60, 600),
    sliced: Callable[[Period, int], bool] = lambda period, window_s: True,
) -> list[Figures]:
    """Figures of all partitions together, of all rows and of every value of every slice, by period and window.

    parts : of each partition its sums and its law; each partition's ages are those of its own watermark.
    sliced : of which period and window the slices are wanted as well; they are most of the work.
    """
    if not parts:
        return []
    law = merged_law([one for _, one in parts])
    out: list[Figures] = []
    periods: tuple[Period, ...] = ("early", "mature")
    for period in periods:
        for window_s in windows_s:
            found = [one.window(law, period, window_s, click_window_s) for one, _ in parts]
            joined = _Sums(*(np.concatenate(column) for column in zip(*found, strict=True)))
            out.append(_figures(joined, "all", "all", period, window_s))
            for at, one in enumerate(plan.slices if sliced(period, window_s) else ()):
                codes = plan.codes(joined.paths, at)
                for code in np.unique(codes):
                    of_code = _Sums(*(column[codes == code] for column in joined))
                    out.append(_figures(of_code, one.name, one.value_name(int(code)), period, window_s))
    return out


def _figures(rows: _Sums, name: str, value: str, period: Period, window_s: int) -> Figures:
    total = rows.sums.sum(axis=0)
    displays, expected, clicks = (float(total[at]) for at in (_EXPOSURES, _EXPECTED, _CLICKS))
    loss = (total[_EXPOSURE_LOSS] + total[_CLICK_LOSS]) / displays if displays > 0 else float("nan")
    return Figures(
        slice=name,
        value=value,
        period=period,
        window_s=window_s,
        exposures=int(rows.exposures.sum()),
        clicks=int(clicks),
        expected=expected,
        observed_over_expected=clicks / expected if expected > 0 else float("nan"),
        log_loss=float(loss),
        normalised_entropy=float(loss) / _entropy(clicks / displays) if 0 < clicks < displays else float("nan"),
        auc=_auc(rows),
    )


def _entropy(rate: float) -> float:
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def _auc(rows: _Sums) -> float:
    """P(a click was served a higher logit than a non-click), ties half, from bins."""
    clicks = np.bincount(rows.bins, rows.sums[:, _CLICKS], _BINS)
    others = np.maximum(np.bincount(rows.bins, rows.sums[:, _EXPOSURES], _BINS) - clicks, 0.0)
    pairs = clicks.sum() * others.sum()
    below = np.cumsum(others) - others
    return float(np.sum(clicks * (below + others / 2)) / pairs) if pairs > 0 else float("nan")


def _inside(p: NDArray[np.float32]) -> NDArray[np.float64]:
    """P as float64, off 0 and 1, where a log loss would be infinite."""
    return np.clip(np.asarray(p, np.float64), _LEAST_P, 1.0 - _LEAST_P)


def _bins_of(p: NDArray[np.float64]) -> NDArray[np.int64]:
    at = np.floor((logit(p) - _LOWEST_LOGIT) * _BINS_PER_LOG_ODD)
    return np.clip(at, 0, _BINS - 1).astype(np.int64)
