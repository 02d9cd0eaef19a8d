"""What a metric stands at, as a scrape would read it."""

from __future__ import annotations

from stream.metric_table import PREFIX, MetricRegistry


def measured(metrics: MetricRegistry, name: str, **labels: str) -> float:
    """The value of a counter or gauge by its name without the prefix; AssertionError for one that is not there."""
    found = metrics.registry.get_sample_value(PREFIX + name, labels)
    assert found is not None, f"no sample {PREFIX}{name}{labels}"
    return found
