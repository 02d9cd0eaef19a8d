"""The table of the workers' metrics."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stream.metric_table import Metric
from stream.metrics import TABLE, WorkerMetrics

UNITS = ("_total", "_seconds", "_ratio", "_bytes", "_rows", "_records", "_events", "_partitions")
WITHOUT_UNIT = {  # a version, and switches
    "millstream_model_version",
    "millstream_learn_diverged",
    "millstream_store_failing",
    "millstream_learn_silent",
}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_names_tell_what_is_counted_in_which_unit(row: Metric) -> None:
    """Prefix, base unit, and `_total` for counters and nothing else."""
    assert re.fullmatch(r"millstream_[a-z_]+", row.name)
    assert row.name.endswith(UNITS) or row.name in WITHOUT_UNIT
    assert row.name.endswith("_total") == (row.kind == "counter")
    assert bool(row.buckets) == (row.kind == "histogram")
    assert row.doc[0].isupper() or row.doc[0].isdigit()
    assert not row.doc.endswith(".")


def test_names_are_unique() -> None:
    """Each metric stands in the table once."""
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_every_label_combination_is_exposed_before_anything_happened() -> None:
    """A counter that was never raised shows as 0, so that its first raise is seen as one."""
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    text = generate_latest(registry).decode()
    for row in TABLE:
        combinations = 1
        for values in row.labels.values():
            combinations *= len(values)
        sample = f"{row.name}_count" if row.kind == "histogram" else row.name
        assert len(re.findall(rf"^{sample}(?:\{{[^}}]*\}})? ", text, re.MULTILINE)) == combinations


def test_a_metric_that_the_table_lacks_cannot_be_raised() -> None:
    """Code and table cannot part."""
    metrics = WorkerMetrics(CollectorRegistry())
    metrics.counter("dead_letters_total", topic="ads.clicks.v1", reason="late").inc()
    with pytest.raises(KeyError):
        metrics.counter("no_such_total")
    with pytest.raises(ValueError, match="label"):
        metrics.counter("learned_rows_total", kind="settled")
