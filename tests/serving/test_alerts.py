"""The alerts of Prometheus against the metrics and label values that the programs expose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from serving.metrics import TABLE as SERVING
from serving.settings import ServingSettings
from stream.metrics import TABLE as WORKERS
from stream.servers.settings import StreamSettings
from stream.worker.settings import WorkerSettings

PROMETHEUS = Path(__file__).parents[2] / "docker" / "prometheus"
COMPOSE = PROMETHEUS.parent / "compose.yaml"
OF_TARGETS = {"job", "instance"}  # labels that Prometheus gives every sample
LABELS: dict[str, Mapping[str, Sequence[str]]] = {row.name: row.labels for row in (*WORKERS, *SERVING)}
SETTINGS = {
    "MILLSTREAM_SPEC",  # options of the programs
    "MILLSTREAM_ARCHIVE",
    *(f"MILLSTREAM_{name.upper()}" for name in (*WorkerSettings.model_fields, *ServingSettings.model_fields)),
    *(name.upper() for name in StreamSettings.model_fields),
}
SELECTOR = re.compile(r"\b(millstream_\w+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


class Selected(NamedTuple):
    """A metric that a query asks for, and the values that it chooses of each label."""

    metric: str
    values: dict[str, list[str]]


def load(path: Path) -> Any:
    """A YAML file as plain data; a key twice in one mapping raises."""
    return YAML(typ="safe", pure=True).load(path)


def alerts() -> list[dict[str, Any]]:
    """The rules of all groups."""
    return [rule for group in load(PROMETHEUS / "alerts.yml")["groups"] for rule in group["rules"]]


def selected(query: str) -> Iterator[Selected]:
    """What a query asks for; an alternation of a regular expression must be of whole values."""
    for metric, matchers in SELECTOR.findall(query):
        found = MATCHER.findall(matchers)
        values = {name: text.split("|") if "~" in operator else [text] for name, operator, text in found}
        yield Selected(metric, values)


ALERTS = alerts()
each_alert = pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])


@each_alert
def test_alert_asks_for_metrics_and_label_values_that_exist(rule: dict[str, Any]) -> None:
    """A selector that nothing matches never fires, and nobody would know."""
    asked = list(selected(rule["expr"]))
    assert asked
    jobs = [job["job_name"] for job in load(PROMETHEUS / "prometheus.yml")["scrape_configs"]]
    for metric, values in asked:
        labels = {"job": jobs} if metric == "up" else LABELS[metric]
        for label, chosen in values.items():
            assert set(chosen) <= set(labels[label] or chosen)


@each_alert
def test_alert_says_how_urgent_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    """Who is woken reads the value, the consequence and the remedy, not the query."""
    assert re.fullmatch(r"Millstream[A-Z]\w+", rule["alert"])
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert len(rule["annotations"]["summary"]) < 120
    assert rule["annotations"]["description"].endswith(".")


@each_alert
def test_alert_names_labels_that_its_metrics_have(rule: dict[str, Any]) -> None:
    """Another label would stand in the text as nothing."""
    own = {label for metric, _ in selected(rule["expr"]) for label in LABELS.get(metric, ())}
    named = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
    assert set(named) <= own | OF_TARGETS


@each_alert
def test_alert_names_settings_that_exist(rule: dict[str, Any]) -> None:
    """Setting any other variable would remedy nothing."""
    named = re.findall(r"\b(?:MILLSTREAM|KAFKA|REDIS)_[A-Z_]+", rule["annotations"]["description"])
    assert set(named) <= SETTINGS


def test_names_are_unique() -> None:
    """An alert can be silenced by its name."""
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) > 20


def test_every_alert_has_a_unit_test_and_no_other() -> None:
    """A test of a name that no rule has passes for ever: such an alert never fires."""
    text = (PROMETHEUS / "alerts_test.yml").read_text()
    asked = re.findall(r'alertname(?:: |="|=~")([\w.*|]+)', text)
    patterns = {name for names in asked for name in names.split("|")}
    known = {rule["alert"] for rule in ALERTS}
    assert all(any(re.fullmatch(pattern, name) for name in known) for pattern in patterns)
    assert known <= patterns


def test_prometheus_is_given_the_rules() -> None:
    """The server reads the file that is mounted beside its own."""
    assert load(PROMETHEUS / "prometheus.yml")["rule_files"] == ["alerts.yml"]
    assert load(PROMETHEUS / "alerts_test.yml")["rule_files"] == ["alerts.yml"]
    mounted = load(COMPOSE)["services"]["prometheus"]["volumes"]
    assert "./prometheus/alerts.yml:/etc/prometheus/alerts.yml:ro" in mounted
