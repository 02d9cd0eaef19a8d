"""What the workers expose to Prometheus: the one table of their metrics, shared by code, documents and tests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from stream.metric_table import Metric, MetricRegistry
from stream.records.topics import (
    CALIBRATION,
    CLICKS,
    CONVERSIONS,
    EXAMPLES,
    IMPRESSIONS,
    JOURNAL,
    SERVED,
    WEIGHTS,
)

REASONS = (
    "malformed",  # neither msgpack nor JSON
    "schema",  # wrong type, missing field, wrong length
    "spec",  # another feature spec
    "time",  # a time that no event has
    "unknown_impression",  # no served and displayed row within the display horizon
    "undisplayed",  # its served row was dropped before it came
    "no_click",  # a conversion without a click
    "wrong_user",  # the row was served to another user
    "wrong_partition",  # its user's rows are in another partition
    "late",  # beyond a horizon
    "not_finite",  # NaN or infinity in a row to be learned
    "diverged",  # a batch whose gradients were not finite
)
"""Why a record or a row goes to the dead-letter topic: a closed set."""

JOIN_COUNTS = (
    "exposures",
    "clicks",
    "conversions",
    "undisplayed",
    "duplicate_served",
    "duplicate_impressions",
    "duplicate_clicks",
    "duplicate_conversions",
    "redelivered_records",
    "forgotten_rows",  # exposed, at the memory bound: their clicks are rejected
    "early_rows",  # pending, at the memory bound: exposed before the slowest input came so far, or dropped
)
"""What becomes of rows in the join."""

_TOPICS = (SERVED, IMPRESSIONS, CLICKS, CONVERSIONS, EXAMPLES)
_AGENTS = ("join", "sessions", "learn", "calibrate", "archive")
_STORES = ("snapshots", "archive")
_STEP_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# fmt: off
TABLE = (
    Metric("millstream_input_records_total", "counter", "Records read, by topic", {"topic": _TOPICS}),
    Metric("millstream_input_rows_total", "counter", "Rows that the join took in, by topic",
           {"topic": _TOPICS[:4]}),
    Metric("millstream_log_cut_records_total", "counter",
           "Offsets read that the log gave to other records since, by topic: it was cut, or created again",
           {"agent": _AGENTS, "topic": _TOPICS}),
    Metric("millstream_dead_letters_total", "counter", "Records and rows rejected, by topic and reason",
           {"topic": _TOPICS, "reason": REASONS}),
    Metric("millstream_rejected_records_total", "counter",
           "Records of weights, calibration or journal that were put aside: no program of this stream writes such ones",
           {"topic": (WEIGHTS, CALIBRATION, JOURNAL), "reason": REASONS[:4]}),
    Metric("millstream_inbox_records", "gauge", "Records that wait for an agent's core", {"agent": _AGENTS}),
    Metric("millstream_step_seconds", "histogram", "Time an agent takes for what it took from its inbox at once",
           {"agent": _AGENTS}, _STEP_S),
    Metric("millstream_join_rows_total", "counter", "What became of rows in the join", {"outcome": JOIN_COUNTS}),
    Metric("millstream_join_pending_rows", "gauge", "Served rows that are not exposed"),
    Metric("millstream_join_waiting_display_rows", "gauge",
           "Displayed rows that wait for the slowest input before they are exposed"),
    Metric("millstream_join_exposed_rows", "gauge", "Exposed rows whose clicks still count"),
    Metric("millstream_join_memory_bytes", "gauge", "Memory that the join's rows and events take"),
    Metric("millstream_join_memory_limit_bytes", "gauge", "Bound of that memory, MILLSTREAM_JOIN_MEMORY_BYTES"),
    Metric("millstream_join_paused_partitions", "gauge",
           "Input partitions that are not read on: they are ahead of the others, or the learner is behind"),
    Metric("millstream_join_unlearned_rows", "gauge", "Examples written that the learner has not journalled yet"),
    Metric("millstream_join_unlearned_limit_rows", "gauge",
           "How many of them pause the join, MILLSTREAM_MOST_UNLEARNED_ROWS; 0: none do"),
    Metric("millstream_join_lost_records_total", "counter", "Records deleted by retention before they were joined",
           {"topic": _TOPICS[:4]}),
    Metric("millstream_click_store_failures_total", "counter",
           "Times that the store of clicks did not answer; conversions wait for it"),
    Metric("millstream_lag_records", "gauge", "Records of a topic that an agent has not worked off",
           {"agent": _AGENTS, "topic": _TOPICS}),
    Metric("millstream_lag_seconds", "gauge", "Age of the newest record worked off, of the slowest partition with more",
           {"agent": _AGENTS, "topic": _TOPICS}),
    Metric("millstream_join_waiting_events", "gauge", "Events that wait for their served row, display or click"),
    Metric("millstream_join_watermark_timestamp_seconds", "gauge", "Event time of the slowest partition of the join"),
    Metric("millstream_join_furthest_watermark_timestamp_seconds", "gauge",
           "Event time of the partition of the join that has come furthest"),
    Metric("millstream_examples_total", "counter", "Examples written, by kind",
           {"kind": ("exposure", "click", "conversion")}),
    Metric("millstream_session_steps_total", "counter", "Steps folded into the session features"),
    Metric("millstream_session_rows_total", "counter", "Examples folded into the session features"),
    Metric("millstream_session_rewinds_total", "counter",
           "Times that the session store stood behind or ahead of what this worker had folded",
           {"reason": ("behind", "ahead")}),
    Metric("millstream_session_lost_records_total", "counter",
           "Examples records deleted by retention before they were folded into the session features"),
    Metric("millstream_session_store_failures_total", "counter",
           "Times that the session store did not answer; the log holds what it could not take"),
    Metric("millstream_session_watermark_timestamp_seconds", "gauge",
           "Event time of the slowest partition of the session features"),
    Metric("millstream_learned_rows_total", "counter", "Examples learned"),
    Metric("millstream_learned_batches_total", "counter", "Learn steps; each makes a model version"),
    Metric("millstream_learn_skipped_batches_total", "counter",
           "Batches left out because their gradients were not finite; their rows went to the dead letters"),
    Metric("millstream_learn_silent", "gauge",
           "1 while clicks that should have come do not: nothing is learned or published"),
    Metric("millstream_learn_silences_total", "counter", "Times that clicks stopped coming while ads were displayed"),
    Metric("millstream_learn_left_out_rows_total", "counter",
           "Examples of displays in a silence: they are not learned"),
    Metric("millstream_learn_delayed_rows", "gauge",
           "Clicks that have not paid their term of the conversion head yet: their conversions are still to come"),
    Metric("millstream_learn_early_clicks_total", "counter",
           "Clicks that paid it too early, because MILLSTREAM_MOST_DELAYED_CLICKS waited"),
    Metric("millstream_learned_conversions_total", "counter",
           "Conversions seen by the learner; only a head of their own learns them"),
    Metric("millstream_learn_lost_records_total", "counter",
           "Offsets of examples deleted by retention before they were learned"),
    Metric("millstream_learn_waiting_rows", "gauge", "Examples that wait for their batch to fill"),
    Metric("millstream_learn_watermark_timestamp_seconds", "gauge", "Event time up to which all examples came"),
    Metric("millstream_learn_diverged", "gauge",
           "1 after a gradient that is not finite or a loss out of bounds: publishing has stopped"),
    Metric("millstream_learn_bases_total", "counter", "New bases that the learner has switched to"),
    Metric("millstream_learn_drifts_total", "counter", "Changes of the normalised log loss that ADWIN found"),
    Metric("millstream_model_version", "gauge", "Newest model version published"),
    Metric("millstream_deltas_total", "counter", "Weights deltas published, heartbeats not counted"),
    Metric("millstream_delta_bytes_total", "counter", "Bytes of published deltas"),
    Metric("millstream_snapshots_total", "counter", "Snapshots written"),
    Metric("millstream_store_failures_total", "counter", "Failed tries to write a snapshot or a part of the archive",
           {"store": _STORES}),
    Metric("millstream_store_failing", "gauge",
           "1 while the folder of the snapshots or of the archive cannot be written; it is tried again",
           {"store": _STORES}),
    Metric("millstream_archived_rows_total", "counter", "Examples in part files of the archive"),
    Metric("millstream_archive_parts_total", "counter", "Part files written to the archive"),
    Metric("millstream_archive_lost_records_total", "counter",
           "Offsets of examples deleted by retention before they were archived"),
    Metric("millstream_archive_waiting_rows", "gauge", "Examples that wait for their part file to be full"),
    Metric("millstream_calibration_records_total", "counter", "Calibration states published"),
    Metric("millstream_calibration_lost_records_total", "counter",
           "Offsets of examples deleted by retention before the calibrator counted them"),
    Metric("millstream_calibration_rows_total", "counter", "Examples counted by the calibrator"),
    Metric("millstream_calibration_rejected_rows_total", "counter",
           "Examples left out of the calibration: their logit or p is not finite"),
    Metric("millstream_calibration_watermark_timestamp_seconds", "gauge",
           "Event time of the slowest partition of the calibrator"),
)
# fmt: on


class WorkerMetrics(MetricRegistry):
    """The workers' metrics in a registry of the caller's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, TABLE)
        self.degraded: dict[str, str] = {}  # what does not work now, though the worker goes on → why; for `/healthz`

    def rejected(self, topic: str, reason: str) -> None:
        """Count a record of the stream's own topics that was put aside."""
        self.counter("rejected_records_total", topic=topic, reason=reason).inc()
