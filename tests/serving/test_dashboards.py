"""The Grafana dashboards against the metrics that the programs expose."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from serving.metrics import TABLE as SERVING
from stream.metrics import TABLE as WORKERS

DASHBOARDS = Path(__file__).parents[2] / "docker" / "grafana" / "dashboards"
LEARNER = r"millstream_(learn|learned|archive|archived|model|deltas|delta|snapshots)_"
JOIN = r"millstream_(join|session|lag|click_store|examples|input|dead_letters)_"
CALIBRATION = r"millstream_calibration_"


def asked() -> set[str]:
    """The metrics that panels ask for, a histogram by its own name."""
    boards = [json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")]
    queries = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    names = (name for query in queries for name in re.findall(r"millstream_\w+", query))
    return {name.removesuffix("_bucket") for name in names}


def test_panels_ask_for_metrics_that_exist() -> None:
    """A name that no program exposes would draw an empty panel."""
    assert asked() <= {row.name for row in (*WORKERS, *SERVING)}


@pytest.mark.parametrize(("names", "at_least"), [(LEARNER, 15), (JOIN, 20), (CALIBRATION, 4)])
def test_every_metric_of_the_agents_is_on_a_dashboard(names: str, at_least: int) -> None:
    """One that is counted and never shown is seen by nobody."""
    expected = {row.name for row in WORKERS if re.match(names, row.name)}
    assert len(expected) > at_least
    assert expected <= asked()


def test_panels_do_not_overlap() -> None:
    """Each has its own id and place."""
    for path in DASHBOARDS.glob("*.json"):
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
