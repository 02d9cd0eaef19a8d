"""The table of metrics."""

from __future__ import annotations

import re

from prometheus_client import generate_latest

from serving.metrics import TABLE, ServingMetrics
from stream.metrics import TABLE as WORKER_TABLE


def test_every_metric_of_the_table_is_exposed_and_no_other() -> None:
    """Names follow the rules: prefix, base unit or _total."""
    exposed = set(re.findall(r"^# TYPE (\S+) ", generate_latest(ServingMetrics().registry).decode(), re.M))
    created = {name for name in exposed if name.endswith("_created")}
    assert exposed - created == {row.name for row in TABLE}
    for row in TABLE:
        assert row.name.startswith("millstream_")
        assert (row.kind == "counter") == row.name.endswith("_total")


def test_no_name_is_taken_by_the_workers() -> None:
    """One name has one meaning, whichever process exposes it."""
    assert not {row.name for row in TABLE} & {row.name for row in WORKER_TABLE}
