"""Where the broker and Redis are, and how many partitions there are: read from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stream.topics import Topic, topic_table


class StreamSettings(BaseSettings):
    """Settings of everything that talks to the broker or to Redis; an empty variable counts as unset.

    Raises pydantic.ValidationError, which names the variable.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True)

    kafka_bootstrap_servers: str | None = None  # host:port, more of them by commas; None: the embedded broker
    redis_url: str | None = Field(default=None, repr=False)  # may hold a password; None: the embedded Redis

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_cafile: Path | None = None  # None: the system's certificate authorities

    partitions: int = Field(default=4, ge=1, validation_alias="MILLSTREAM_PARTITIONS")
    replication_factor: int = Field(default=1, ge=1, validation_alias="MILLSTREAM_REPLICATION_FACTOR")
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", validation_alias="MILLSTREAM_TOPIC_PREFIX")

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _servers_have_ports(cls, servers: str | None) -> str | None:
        for server in [] if servers is None else servers.split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or "/" in host or not port.isdigit():
                raise ValueError(
                    f"KAFKA_BOOTSTRAP_SERVERS={servers}: {server.strip()!r} is not host:port, so no broker can be "
                    "reached. Give host:port, several of them separated by commas, without a scheme."
                )
        return servers

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError(
                f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} needs a user and a password: the broker would "
                "refuse every connection. Set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD."
            )
        return self

    def topics(self) -> tuple[Topic, ...]:
        """Return the table of topics with these counts and this prefix."""
        return topic_table(self.partitions, self.replication_factor, self.topic_prefix)

    def topic(self, name: str) -> str:
        """Return the name on the broker of the topic `name` of the table."""
        return self.topic_prefix + name


def kafka_client_options(settings: StreamSettings) -> dict[str, Any]:
    """Return the security arguments that any aiokafka client takes; nothing of it may be logged."""
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
    if protocol.startswith("SASL") and settings.kafka_sasl_password is not None:
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    return options


def without_password(url: str) -> str:
    """Return `url` with its password, if any, replaced by ***: fit for logs and messages."""
    password = urlsplit(url).password
    return url if password is None else url.replace(f":{password}@", ":***@", 1)
