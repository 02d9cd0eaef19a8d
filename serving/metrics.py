"""What serving tells Prometheus: the one table of its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_FRESHNESS_S = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    doc: str
    labels: tuple[str, ...] = ()
    buckets: Sequence[float] = ()


# fmt: off
TABLE = (
    Metric("millstream_serving_requests_total", "counter", "HTTP calls answered, by route and status class",
           ("route", "status")),
    Metric("millstream_serving_request_seconds", "histogram", "Time from a call's arrival to its answer", ("route",),
           _LATENCY_S),
    Metric("millstream_serving_rows_total", "counter", "Ads scored"),
    Metric("millstream_serving_model_version", "gauge", "Version of the model in use"),
    Metric("millstream_serving_map_version", "gauge", "Version of the calibration map in use"),
    Metric("millstream_serving_swaps_total", "counter", "Versions swapped in"),
    Metric("millstream_serving_gaps_total", "counter", "Times the next version was missing, damaged or unrelated"),
    Metric("millstream_serving_reloads_total", "counter", "Snapshots installed after a gap"),
    Metric("millstream_serving_rejected_records_total", "counter",
           "Records of weights or calibration that could not be used", ("topic", "reason")),
    Metric("millstream_serving_applied_timestamp_seconds", "gauge",
           "Event time up to which model and map have seen everything"),
    Metric("millstream_serving_freshness_seconds", "histogram",
           "Click produced to first prediction by a version that learned it", (), _FRESHNESS_S),
    Metric("millstream_serving_observed_over_expected_ratio", "gauge",
           "Clicks over calibrated expected clicks, on the rows that the calibrator holds"),
    Metric("millstream_serving_predicted_mean_ratio", "gauge", "Mean calibrated probability of the last second"),
    Metric("millstream_feature_read_failures_total", "counter",
           "Calls scored without session features because the store did not answer"),
    Metric("millstream_served_records_total", "counter", "Served records that the broker acknowledged"),
    Metric("millstream_served_records_dropped_total", "counter", "Served records given up: they cannot be learned"),
    Metric("millstream_served_send_failures_total", "counter", "Sends of served records that failed, retried or not"),
    Metric("millstream_served_waiting_bytes", "gauge", "Bytes of served records that the broker has not acknowledged"),
)
# fmt: on


class ServingMetrics:
    """The metrics of the table, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {row.name: self._made(row) for row in TABLE}
        counters = {n: m for n, m in made.items() if isinstance(m, Counter)}
        gauges = {n: m for n, m in made.items() if isinstance(m, Gauge)}
        histograms = {n: m for n, m in made.items() if isinstance(m, Histogram)}
        self.requests = counters["millstream_serving_requests_total"]
        self.request_seconds = histograms["millstream_serving_request_seconds"]
        self.rows = counters["millstream_serving_rows_total"]
        self.model_version = gauges["millstream_serving_model_version"]
        self.map_version = gauges["millstream_serving_map_version"]
        self.swaps = counters["millstream_serving_swaps_total"]
        self.gaps = counters["millstream_serving_gaps_total"]
        self.reloads = counters["millstream_serving_reloads_total"]
        self.rejected_records = counters["millstream_serving_rejected_records_total"]
        self.applied_timestamp = gauges["millstream_serving_applied_timestamp_seconds"]
        self.freshness = histograms["millstream_serving_freshness_seconds"]
        self.observed_over_expected = gauges["millstream_serving_observed_over_expected_ratio"]
        self.predicted_mean = gauges["millstream_serving_predicted_mean_ratio"]
        self.feature_read_failures = counters["millstream_feature_read_failures_total"]
        self.served_records = counters["millstream_served_records_total"]
        self.served_records_dropped = counters["millstream_served_records_dropped_total"]
        self.served_send_failures = counters["millstream_served_send_failures_total"]
        self.served_waiting_bytes = gauges["millstream_served_waiting_bytes"]

    def _made(self, row: Metric) -> Counter | Gauge | Histogram:
        if row.kind == "counter":
            return Counter(row.name, row.doc, row.labels, registry=self.registry)
        if row.kind == "gauge":
            return Gauge(row.name, row.doc, row.labels, registry=self.registry)
        return Histogram(row.name, row.doc, row.labels, registry=self.registry, buckets=row.buckets)
