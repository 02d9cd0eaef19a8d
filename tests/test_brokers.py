"""How the tests choose their broker."""

from __future__ import annotations

import pytest

from tests.brokers import choose, skip_or_fail


def test_a_given_broker_comes_first_then_kafka_home() -> None:
    """`auto` takes the first that is there."""
    both = {"KAFKA_BOOTSTRAP_SERVERS": "h:1", "KAFKA_HOME": "/k"}
    assert choose(both)[0] == "given"
    assert choose({"KAFKA_HOME": "/k"})[0] == "kafka-home"
    assert choose({**both, "MILLSTREAM_TEST_BROKER": "embedded"})[0] == "embedded"


def test_an_asked_kind_that_is_missing_is_no_other_kind() -> None:
    """Asking for a real Kafka never falls back to the embedded broker."""
    kind, reason = choose({"MILLSTREAM_TEST_BROKER": "kafka-home"})
    assert kind is None
    assert "KAFKA_HOME is not set" in reason


def test_an_unknown_kind_is_bad_usage() -> None:
    """The error lists the kinds."""
    with pytest.raises(pytest.UsageError, match=r"MILLSTREAM_TEST_BROKER=redpanda .*embedded"):
        choose({"MILLSTREAM_TEST_BROKER": "redpanda"})


def test_a_skip_is_a_failure_on_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI=true a missing server fails the test; elsewhere it is skipped with the reason."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no broker"):
        skip_or_fail("no broker")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no broker"):
        skip_or_fail("no broker")
