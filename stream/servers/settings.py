"""Where the broker and Redis are, and how many partitions there are: read from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stream.records.topics import Topic, topic_table
from stream.servers.tls import TlsFiles, client_context

_REDIS_SCHEMES = ("redis", "rediss", "unix")


def settings_fault(error: ValidationError) -> str:
    """What is wrong with settings of the environment, in a line."""
    faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'settings'}: {f['msg']}" for f in error.errors())
    return f"the environment holds settings that cannot be used: {faults}"


class StreamSettings(BaseSettings):
    """Settings of everything that talks to the broker or to Redis; an empty variable counts as unset.

    Raises pydantic.ValidationError, which names the variable. Neither it nor the settings as text hold a secret.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True, hide_input_in_errors=True
    )

    kafka_bootstrap_servers: str | None = None
    """The broker as host:port, several by commas; unset: `worker` starts an embedded one."""
    kafka_session_timeout_s: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """A worker that is silent for so long loses its partitions; unset: 10, on the embedded broker 2."""

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to speak with the broker."""
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How to log in with SASL."""
    kafka_sasl_username: str | None = None
    """User of SASL."""
    kafka_sasl_password: SecretStr | None = None
    """Password of SASL; never logged."""
    kafka_ssl_cafile: Path | None = None
    """Certificate authorities; unset: the system's."""
    kafka_ssl_certfile: Path | None = None
    """Certificate of the client, for brokers that ask for one."""
    kafka_ssl_keyfile: Path | None = None
    """Key of that certificate."""
    kafka_ssl_keyfile_password: SecretStr | None = None
    """Password of that key; never logged."""

    redis_url: str | None = Field(default=None, repr=False)
    """Redis as redis://user:password@host:port/0, rediss:// for TLS, or unix://path; unset: an embedded one."""
    redis_username: str | None = None
    """User, if the URL holds none."""
    redis_password: SecretStr | None = None
    """Password, if the URL holds none; never logged."""
    redis_ssl_cafile: Path | None = None
    """Certificate authorities beside the system's."""
    redis_ssl_certfile: Path | None = None
    """Certificate of the client, for servers that ask for one."""
    redis_ssl_keyfile: Path | None = None
    """Key of that certificate."""
    redis_ssl_keyfile_password: SecretStr | None = None
    """Password of that key; never logged."""

    partitions: int = Field(default=4, ge=1, validation_alias="MILLSTREAM_PARTITIONS")
    """Of each input topic and of the examples topic; at most 4096."""
    replication_factor: int = Field(default=1, ge=1, validation_alias="MILLSTREAM_REPLICATION_FACTOR")
    """Of every topic; at most the number of brokers. 3 is usual on a cluster."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", validation_alias="MILLSTREAM_TOPIC_PREFIX")
    """Before the name of every topic, so that several streams can share a broker."""

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _servers_have_ports(cls, servers: str | None) -> str | None:
        for server in [] if servers is None else servers.split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or "/" in host or "@" in host or not port.isdigit():
                shown = "(not shown: it may hold a password)" if "@" in server else repr(server.strip())
                raise ValueError(
                    f"KAFKA_BOOTSTRAP_SERVERS: {shown} is not host:port, so no broker can be reached. Give host:port, "
                    "several of them separated by commas, without a scheme and without a user."
                )
        return servers

    @field_validator("redis_url")
    @classmethod
    def _redis_url_can_be_read(cls, url: str | None) -> str | None:
        if url is not None and not _is_redis_url(url):
            raise ValueError(
                "REDIS_URL (not shown: it may hold a password) is no URL of a Redis, so none can be reached. Give "
                "redis://user:password@host:port/0, rediss:// for TLS, or unix://path; write / ? # @ : in a password "
                "as %2F %3F %23 %40 %3A, or set REDIS_PASSWORD instead."
            )
        return url

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

    @model_validator(mode="after")
    def _tls_is_sound(self) -> Self:
        if self.kafka_security_protocol.endswith("SSL"):
            client_context(self.kafka_tls)
        elif self.kafka_tls.given:
            raise ValueError(
                f"KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE or KAFKA_SSL_KEYFILE is set, but KAFKA_SECURITY_PROTOCOL="
                f"{self.kafka_security_protocol}: records would go in clear text. Set it to SSL or SASL_SSL, or unset "
                "the files."
            )
        if _is_over_tls(self.redis_url):
            client_context(self.redis_tls)
        elif self.redis_tls.given:
            raise ValueError(
                "REDIS_SSL_CAFILE, REDIS_SSL_CERTFILE or REDIS_SSL_KEYFILE is set, but REDIS_URL does not begin with "
                "rediss://: everything would go in clear text. Let it begin so, or unset the files."
            )
        return self

    @model_validator(mode="after")
    def _redis_user_has_a_server(self) -> Self:
        if self.redis_url is None and (self.redis_username or self.redis_password):
            raise ValueError(
                "REDIS_USERNAME or REDIS_PASSWORD is set, but REDIS_URL is not: the embedded Redis knows no users and "
                "would refuse them. Set REDIS_URL to the Redis that they are for, or unset them."
            )
        return self

    @property
    def kafka_tls(self) -> TlsFiles:
        """The files that the broker's clients use over TLS."""
        password = self.kafka_ssl_keyfile_password
        return TlsFiles("KAFKA_SSL", self.kafka_ssl_cafile, self.kafka_ssl_certfile, self.kafka_ssl_keyfile, password)

    @property
    def redis_tls(self) -> TlsFiles:
        """The files that the clients of Redis use over TLS."""
        password = self.redis_ssl_keyfile_password
        return TlsFiles("REDIS_SSL", self.redis_ssl_cafile, self.redis_ssl_certfile, self.redis_ssl_keyfile, password)

    def topics(self) -> tuple[Topic, ...]:
        """Return the table of topics with these counts and this prefix."""
        return topic_table(self.partitions, self.replication_factor, self.topic_prefix)

    def topic(self, name: str) -> str:
        """Return the name on the broker of the topic `name` of the table."""
        return self.topic_prefix + name


def redis_client_options(settings: StreamSettings) -> dict[str, Any]:
    """Return the security arguments of `redis.Redis.from_url` beside the URL, which goes before them.

    Nothing of it may be logged.
    """
    options: dict[str, Any] = {}
    if settings.redis_username is not None:
        options["username"] = settings.redis_username
    if settings.redis_password is not None:
        options["password"] = settings.redis_password.get_secret_value()
    if _is_over_tls(settings.redis_url):
        files = settings.redis_tls
        options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        given = {"ssl_ca_certs": files.cafile, "ssl_certfile": files.certfile, "ssl_keyfile": files.keyfile}
        options |= {name: str(path) for name, path in given.items() if path is not None}
        if files.password is not None:
            options["ssl_password"] = files.password.get_secret_value()
    return options


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no number
    except ValueError:
        return False
    return parts.scheme in _REDIS_SCHEMES and "@" not in parts.path + parts.query + parts.fragment


def _is_over_tls(url: str | None) -> bool:
    return url is not None and urlsplit(url).scheme == "rediss"


def without_password(url: str) -> str:
    """Return `url` with its passwords, if any, replaced by ***: fit for logs and messages.

    A password may stand before the host and, as Redis has it, in the query.
    """
    parts = urlsplit(url)
    who, _, where = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    netloc = f"{user}:***@{where}" if password else parts.netloc
    query = "&".join(_without_value(one) for one in parts.query.split("&"))
    if (netloc, query) == (parts.netloc, parts.query):
        return url
    return parts._replace(netloc=netloc, query=query).geturl()


def _without_value(argument: str) -> str:
    name, _, value = argument.partition("=")
    return f"{name}=***" if value and "password" in unquote(name).lower() else argument
