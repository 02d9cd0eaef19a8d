"""Settings from the environment."""

from __future__ import annotations

import ssl

import pytest
from pydantic import ValidationError

from stream.kafka.client_options import kafka_client_options
from stream.servers.settings import StreamSettings, without_password

VARIABLES = (
    *("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"),
    *("MILLSTREAM_PARTITIONS", "MILLSTREAM_TOPIC_PREFIX", "MILLSTREAM_REPLICATION_FACTOR"),
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine reaches these tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_unset_means_embedded() -> None:
    """Without variables both servers are embedded, in plain text, with four partitions."""
    settings = StreamSettings()
    assert settings.kafka_bootstrap_servers is None
    assert settings.redis_url is None
    assert settings.partitions == 4
    assert kafka_client_options(settings) == {"security_protocol": "PLAINTEXT"}


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses, partitions and prefix come from their variables; an empty one counts as unset."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "a:9092,b:9092")
    monkeypatch.setenv("REDIS_URL", "")
    monkeypatch.setenv("MILLSTREAM_PARTITIONS", "12")
    monkeypatch.setenv("MILLSTREAM_REPLICATION_FACTOR", "3")
    monkeypatch.setenv("MILLSTREAM_TOPIC_PREFIX", "blue.")
    settings = StreamSettings()
    assert settings.kafka_bootstrap_servers == "a:9092,b:9092"
    assert settings.redis_url is None
    first = settings.topics()[0]
    assert (first.name, first.partitions, first.replication_factor) == ("blue.ads.served.v1", 12, 3)
    assert settings.topic("ads.served.v1") == first.name


def test_sasl_reaches_the_client_and_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    """The password goes to the client's options, and to nothing that could be logged."""
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "reader")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@host/0")
    settings = StreamSettings()
    options = kafka_client_options(settings)
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("reader", "hunter2")
    assert isinstance(options["ssl_context"], ssl.SSLContext)
    assert "hunter2" not in repr(settings) + str(settings)


def test_sasl_without_a_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the protocol and the variables that are missing."""
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(ValidationError, match=r"KAFKA_SECURITY_PROTOCOL=SASL_SSL needs.*KAFKA_SASL_PASSWORD"):
        StreamSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MILLSTREAM_PARTITIONS", "0"),
        ("MILLSTREAM_PARTITIONS", "four"),
        ("MILLSTREAM_TOPIC_PREFIX", "a b"),
        ("KAFKA_SECURITY_PROTOCOL", "TLS"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka://h:9092"),
        ("KAFKA_BOOTSTRAP_SERVERS", "h:9092,h"),
    ],
)
def test_a_wrong_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The error names the setting."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=rf"(?i){name}"):
        StreamSettings()


def test_passwords_are_hidden_in_urls() -> None:
    """Only the password is replaced."""
    assert without_password("redis://u:p%40ss@h:6379/0") == "redis://u:***@h:6379/0"
    assert without_password("redis://:x@h") == "redis://:***@h"
    assert without_password("redis://h:6379/0") == "redis://h:6379/0"
