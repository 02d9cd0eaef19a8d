"""How good the served probabilities were, by cohort of display time: gauges, JSON and the points of the live page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD
from serving.metrics import ServingMetrics

ALL: Final = "all"
"""The slice of all traffic."""
MAX_SLICE_VALUES: Final = 12  # on /metrics and the page: those with the most exposures
WINDOWS: Final[Mapping[int, str]] = {60: "1m", 600: "10m", 3600: "1h", 86_400: "1d"}
"""Spans of display (conversions: click) times that figures are of, in seconds → as the label says it."""
WINDOWS_OF: Final[Mapping[str, tuple[int, ...]]] = {CLICK_HEAD: (60, 600, 3600), CONVERSION_HEAD: (3600, 86_400)}
"""Those of each head; conversions are few, and their cohorts an hour long when they are mature."""


class CohortFigures(NamedTuple):
    """What became of the displays of one head, maturity, window, slice and variant.

    The window ends now (early) or one click window ago (mature: all clicks have come). Early a display of age a counts
    with the share F(a) of the clicks that come so soon.
    """

    head: str  # "click", "conversion"
    maturity: Literal["early", "mature"]
    window_s: int  # one of `WINDOWS`
    slice: str  # ALL, or "name=value"
    variant: str
    exposures: float  # displays; of conversions: clicks
    observed: float  # clicks; conversions
    expected: float  # Σ served p, early: Σ p F(age)
    log_loss: float  # nats an exposure, of served p; NaN: unknown
    normalized_entropy: float  # over the entropy of the observed rate
    auc: float

    @property
    def observed_over_expected(self) -> float:
        """O/E; NaN where nothing was expected."""
        return self.observed / self.expected if self.expected > 0 else math.nan

    def as_json(self) -> dict[str, Any]:
        """By name; null for NaN."""
        figures = {**self._asdict(), "observed_over_expected": self.observed_over_expected}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in figures.items()
        }


_GAUGES: Final[Mapping[str, str]] = {
    "served_observed_over_expected_ratio": "observed_over_expected",
    "served_normalized_entropy_ratio": "normalized_entropy",
    "served_log_loss_nats": "log_loss",
    "served_auc_ratio": "auc",
    "served_cohort_exposures": "exposures",
    "served_cohort_expected_events": "expected",
    "served_cohort_observed_events": "observed",
}


def sliced(head: str, maturity: str, window_s: int) -> bool:
    """Whether the slices of these figures are shown: in a shorter window a slice has too few events to show much."""
    return maturity == "mature" and window_s == max(WINDOWS_OF[head])


def shown(figures: Iterable[CohortFigures]) -> list[CohortFigures]:
    """The figures of all traffic, and the mature ones of each slice's `MAX_SLICE_VALUES` largest values."""
    by_slice: dict[tuple[str, str, int, str, str], list[CohortFigures]] = defaultdict(list)
    for one in figures:
        if one.slice == ALL or sliced(one.head, one.maturity, one.window_s):
            by_slice[one.head, one.maturity, one.window_s, one.variant, one.slice.partition("=")[0]].append(one)
    largest = (sorted(of, key=lambda one: (-one.exposures, one.slice))[:MAX_SLICE_VALUES] for of in by_slice.values())
    return [one for of in largest for one in of]


def publish(figures: Sequence[CohortFigures], metrics: ServingMetrics) -> None:
    """Set the gauges to these figures; what they no longer hold is no longer exposed."""
    for name, attribute in _GAUGES.items():
        gauge = metrics.gauge(name)
        gauge.clear()
        for one in figures:
            value = getattr(one, attribute)
            if math.isfinite(value):
                labels = (one.head, one.maturity, WINDOWS[one.window_s], one.slice, one.variant)
                gauge.labels(*labels).set(value)


def points(figures: Iterable[CohortFigures]) -> dict[str, float | None]:
    """Of all traffic, by ``click_mature_auc_10m`` and the like: values of one moment of the series."""
    found: dict[str, float | None] = {}
    for one in figures:
        if one.slice == ALL:
            of = one.as_json()
            for name in ("observed_over_expected", "normalized_entropy", "log_loss", "auc"):
                found[f"{one.head}_{one.maturity}_{name}_{WINDOWS[one.window_s]}"] = of[name]
    return found
