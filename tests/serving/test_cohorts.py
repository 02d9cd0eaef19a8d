"""The cohort figures as gauges, JSON and points of the series."""

from __future__ import annotations

import math

import orjson
from prometheus_client import generate_latest

from serving.cohorts import ALL, MAX_SLICE_VALUES, WINDOWS, CohortFigures, points, publish, shown
from serving.metrics import TABLE, ServingMetrics


def figures(slice_: str = ALL, **changes: object) -> CohortFigures:
    """Mature clicks: 90 came where 100 were expected."""
    of = CohortFigures("click", "mature", 3_600, slice_, "main", 1_000.0, 90.0, 100.0, 0.3, 0.95, 0.7)
    return of._replace(**changes)  # type: ignore[arg-type]


def value(metrics: ServingMetrics, name: str, slice_: str = ALL) -> float | None:
    """A gauge of mature clicks; None where it is not exposed."""
    labels = {"head": "click", "maturity": "mature", "window": "1h", "slice": slice_, "variant": "main"}
    return metrics.registry.get_sample_value(f"millstream_served_{name}", labels)


def test_gauges_say_the_figures() -> None:
    """Each under its unit; what is not known is not exposed, since 0 would be a figure."""
    metrics = ServingMetrics()
    publish([figures(auc=math.nan)], metrics)
    assert value(metrics, "observed_over_expected_ratio") == 0.9
    assert value(metrics, "normalized_entropy_ratio") == 0.95
    assert value(metrics, "log_loss_nats") == 0.3
    assert value(metrics, "cohort_exposures") == 1_000
    assert value(metrics, "cohort_expected_events") == 100
    assert value(metrics, "cohort_observed_events") == 90
    assert value(metrics, "auc_ratio") is None


def test_before_any_figures_no_ratio_is_exposed() -> None:
    """An O/E of 0 would wake somebody."""
    text = generate_latest(ServingMetrics().registry).decode()
    assert "\nmillstream_served_observed_over_expected_ratio{" not in text


def test_a_slice_that_is_gone_is_no_longer_exposed() -> None:
    """Its last value would stand for ever."""
    metrics = ServingMetrics()
    publish([figures(), figures("place=1")], metrics)
    assert value(metrics, "auc_ratio", "place=1") == 0.7
    publish([figures()], metrics)
    assert value(metrics, "auc_ratio", "place=1") is None
    assert value(metrics, "auc_ratio") == 0.7


def test_only_the_largest_values_of_a_slice_are_shown() -> None:
    """However many the data holds, the label set stays bounded; all traffic is always there, each slice has its own."""
    of_place = [figures(f"place={i}", exposures=float(i)) for i in range(3 * MAX_SLICE_VALUES)]
    found = shown([*of_place, figures("age=0", exposures=0.5), figures()])
    expected = {f"place={i}" for i in range(2 * MAX_SLICE_VALUES, 3 * MAX_SLICE_VALUES)} | {"age=0", ALL}
    assert {one.slice for one in found} == expected
    assert len(found) == len(expected)


def test_slices_are_shown_mature_and_of_the_longest_window_only() -> None:
    """Of all traffic there is each window; a slice has too few clicks in a minute to tell anything."""
    short, young = figures("place=1", window_s=60), figures("place=1", maturity="early")
    everything = [figures(window_s=window) for window in WINDOWS]
    assert shown([short, young, *everything]) == everything
    clicked = [figures("place=1", head="conversion", window_s=window) for window in (3_600, 86_400)]
    assert shown(clicked) == clicked[1:]


def test_windows_have_the_names_of_the_label() -> None:
    """A gauge of another window would stand beside the table."""
    table = {row.name: row for row in TABLE}
    assert tuple(WINDOWS.values()) == table["millstream_served_auc_ratio"].labels["window"]


def test_without_expectation_there_is_no_ratio() -> None:
    """Not infinity, which is no JSON."""
    of = figures(expected=0.0, observed=0.0)
    assert math.isnan(of.observed_over_expected)
    assert orjson.loads(orjson.dumps(of.as_json()))["observed_over_expected"] is None


def test_points_are_those_of_all_traffic() -> None:
    """By head, maturity and figure, so that the page's charts find them."""
    late = figures(head="conversion", maturity="early", window_s=86_400)
    found = points([figures(), figures("place=1", auc=0.1), late])
    assert found["click_mature_auc_1h"] == 0.7
    assert found["conversion_early_observed_over_expected_1d"] == 0.9
    assert len(found) == 8
