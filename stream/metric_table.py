"""Metrics as a table: one row each, shared by the code that raises them, the docs, the dashboards and the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "millstream_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of a table; ``labels`` gives each label the closed set of its values.

    An empty set is one that comes from the data, bounded by who sets it: such children are there when they are set.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    doc: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    buckets: Sequence[float] = ()


class MetricRegistry:
    """The metrics of a table in a registry of the caller's; every child of a label set exists from the start.

    `counter`, `gauge` and `histogram` give a metric by its name without the prefix ``millstream_``, with its labels.
    """

    def __init__(self, registry: CollectorRegistry, table: Sequence[Metric]) -> None:
        self.registry = registry
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for row in table:
            self._register(row)

    def counter(self, name: str, **labels: str) -> Counter:
        """A counter; KeyError for a name, ValueError for labels, that the table does not hold."""
        found = self._counters[name]
        return found.labels(**labels) if labels else found

    def gauge(self, name: str, **labels: str) -> Gauge:
        """A gauge."""
        found = self._gauges[name]
        return found.labels(**labels) if labels else found

    def histogram(self, name: str, **labels: str) -> Histogram:
        """A histogram."""
        found = self._histograms[name]
        return found.labels(**labels) if labels else found

    def _register(self, row: Metric) -> None:
        name, labels = row.name.removeprefix(PREFIX), tuple(row.labels)
        metric: Counter | Gauge | Histogram
        if row.kind == "counter":
            metric = self._counters[name] = Counter(row.name, row.doc, labels, registry=self.registry)
        elif row.kind == "gauge":
            metric = self._gauges[name] = Gauge(row.name, row.doc, labels, registry=self.registry)
        else:
            metric = self._histograms[name] = Histogram(
                row.name, row.doc, labels, registry=self.registry, buckets=row.buckets
            )
        for values in combinations(row.labels):
            metric.labels(**values)


def combinations(labels: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of label values; none for a metric without labels."""
    if not labels:
        return []
    combined: list[dict[str, str]] = [{}]
    for name, values in labels.items():
        combined = [{**labels_so_far, name: value} for labels_so_far in combined for value in values]
    return combined
