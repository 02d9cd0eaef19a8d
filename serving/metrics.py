"""What serving exposes to Prometheus: the one table of its metrics."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry

from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD
from serving.refusals import REASONS
from stream.metric_table import Metric, MetricRegistry
from stream.records.topics import CALIBRATION, WEIGHTS
from stream.servers.http_site import CLOSED

_LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_FRESHNESS_S = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)
VARIANT = "main"
"""The only variant so far: what is served by one line of the model."""

ROUTES = ("/v1/rank", "/v1/score", "/v1/status", "/livez", "/healthz", "/readyz", "/metrics", "/")
_REASONS = (
    "malformed",  # not read as a record of its topic
    "schema",  # values that no record has; weights or a calibration state that are damaged or of no model
    "spec",  # learned with another feature spec
    "time",  # a time that no event has
    "error",  # whatever else went wrong with it; the log holds the traceback
    "gap",  # a version that does not follow, and no snapshot that fills the gap
)

DEGRADED = (
    "learner_silent",  # not heard for MILLSTREAM_FRESH_WITHIN_S: the model grows old
    "weights_gap",  # versions are missing: the last whole one answers
    "weights_rejected",  # the newest record of the weights cannot be used, likewise
    "task_ended",  # what a task kept up to date stands still
    "session_store",  # answers are made without session features
    "served_log",  # what is served does not reach the broker
)

HEADS = (CLICK_HEAD, CONVERSION_HEAD)
_COHORTS = {
    "head": HEADS,
    "maturity": ("early", "mature"),
    "window": ("1m", "10m", "1h", "1d"),
    "slice": (),  # "all", or "name=value" of those with the most exposures
    "variant": (VARIANT,),
}

# fmt: off
TABLE = (
    Metric("millstream_serving_requests_total", "counter", "HTTP calls answered, by route and status class",
           {"route": (*ROUTES, "other"), "status": ("2xx", "3xx", "4xx", "5xx")}),
    Metric("millstream_serving_request_seconds", "histogram", "Time from a call's arrival to its answer",
           {"route": (*ROUTES, "other")}, _LATENCY_S),
    Metric("millstream_serving_refused_calls_total", "counter", "Calls refused before they were scored, by reason",
           {"reason": REASONS}),
    Metric("millstream_serving_misspelt_fields_total", "counter",
           "Calls with a name that is almost this field's, and so without its value", {"field": ()}),
    Metric("millstream_serving_calls", "gauge", "Calls in flight, whole in body"),
    Metric("millstream_serving_open_connections", "gauge", "Open connections"),
    Metric("millstream_serving_closed_connections_total", "counter", "Connections cut off, by reason",
           {"reason": CLOSED}),
    Metric("millstream_serving_degraded", "gauge", "1 while answers are given but this is amiss", {"reason": DEGRADED}),
    Metric("millstream_serving_rows_total", "counter", "Ads scored"),
    Metric("millstream_serving_model_version", "gauge", "Version of the model in use"),
    Metric("millstream_serving_map_version", "gauge", "Version of the calibration map in use"),
    Metric("millstream_serving_swaps_total", "counter", "Versions swapped in"),
    Metric("millstream_serving_gaps_total", "counter", "Times the next version was missing, damaged or unrelated"),
    Metric("millstream_serving_reloads_total", "counter", "Snapshots installed after a gap"),
    Metric("millstream_serving_rejected_records_total", "counter",
           "Records of weights or calibration that could not be used",
           {"topic": (WEIGHTS, CALIBRATION), "reason": _REASONS}),
    Metric("millstream_serving_applied_timestamp_seconds", "gauge",
           "Event time up to which model and map have seen everything"),
    Metric("millstream_serving_freshness_seconds", "histogram",
           "Click produced to first prediction by a version that learned it", {}, _FRESHNESS_S),
    Metric("millstream_served_observed_over_expected_ratio", "gauge",
           "Clicks (conversions) of displayed cohorts over those that served p expected by their age", _COHORTS),
    Metric("millstream_served_normalized_entropy_ratio", "gauge",
           "Log loss of served p over the entropy of the observed rate; above 1 the rate alone is better", _COHORTS),
    Metric("millstream_served_log_loss_nats", "gauge", "Log loss of served p an exposure", _COHORTS),
    Metric("millstream_served_auc_ratio", "gauge", "AUC of served p", _COHORTS),
    Metric("millstream_served_cohort_exposures", "gauge", "Exposures that these figures are of", _COHORTS),
    Metric("millstream_served_cohort_expected_events", "gauge", "Events that served p expected of them", _COHORTS),
    Metric("millstream_served_cohort_observed_events", "gauge", "Events that followed them", _COHORTS),
    Metric("millstream_serving_predicted_mean_ratio", "gauge", "Mean calibrated probability of the last second",
           {"head": HEADS}),
    Metric("millstream_feature_read_failures_total", "counter",
           "Calls scored without session features because the store did not answer"),
    Metric("millstream_served_records_total", "counter", "Served records that the broker acknowledged"),
    Metric("millstream_served_records_dropped_total", "counter", "Served records given up: they cannot be learned"),
    Metric("millstream_served_send_failures_total", "counter", "Sends of served records that failed, retried or not"),
    Metric("millstream_served_waiting_bytes", "gauge", "Bytes of served records that the broker has not acknowledged"),
)
# fmt: on


class ServingMetrics(MetricRegistry):
    """The metrics of the table, in a registry of their own; those that every call increments are attributes."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry(), TABLE)
        self.requests = self.counter("serving_requests_total")
        self.request_seconds = self.histogram("serving_request_seconds")
        self.refused_calls = self.counter("serving_refused_calls_total")
        self.misspelt_fields = self.counter("serving_misspelt_fields_total")
        self.calls = self.gauge("serving_calls")
        self.open_connections = self.gauge("serving_open_connections")
        self.closed_connections = self.counter("serving_closed_connections_total")
        self.degraded = self.gauge("serving_degraded")
        self.rows = self.counter("serving_rows_total")
        self.model_version = self.gauge("serving_model_version")
        self.map_version = self.gauge("serving_map_version")
        self.swaps = self.counter("serving_swaps_total")
        self.gaps = self.counter("serving_gaps_total")
        self.reloads = self.counter("serving_reloads_total")
        self.rejected_records = self.counter("serving_rejected_records_total")
        self.applied_timestamp = self.gauge("serving_applied_timestamp_seconds")
        self.freshness = self.histogram("serving_freshness_seconds")
        self.predicted_mean = self.gauge("serving_predicted_mean_ratio")
        for head in HEADS:
            self.predicted_mean.labels(head=head).set(math.nan)  # nothing was answered yet
        self.feature_read_failures = self.counter("feature_read_failures_total")
        self.served_records = self.counter("served_records_total")
        self.served_records_dropped = self.counter("served_records_dropped_total")
        self.served_send_failures = self.counter("served_send_failures_total")
        self.served_waiting_bytes = self.gauge("served_waiting_bytes")
