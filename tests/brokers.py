"""Which broker the tests run on, and how it is started.

`MILLSTREAM_TEST_BROKER` chooses: `given` (KAFKA_BOOTSTRAP_SERVERS), `kafka-home` (KAFKA_HOME), `docker`, `embedded`, or
`auto`, the default, which takes the first of them that is there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from stream.embedded.broker import EmbeddedBroker, broker_program
from stream.embedded.process import ServerStartError
from stream.records.topics import Topic
from stream.servers.settings import StreamSettings
from tests.apache_kafka import ApacheKafka

Kind = Literal["given", "kafka-home", "docker", "embedded"]
KINDS: tuple[Kind, ...] = ("given", "kafka-home", "docker", "embedded")


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker; the embedded kind has no transactions, compaction, retention or time look-ups."""

    kind: Kind
    bootstrap: str

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded one."""
        return self.kind == "embedded"

    def __str__(self) -> str:
        return f"{self.kind} at {self.bootstrap}"


@dataclass(frozen=True, slots=True)
class TestTopics:
    """All topics under a prefix of their own on a shared broker."""

    __test__ = False

    broker: Broker
    prefix: str
    partitions: int
    table: tuple[Topic, ...]

    def name(self, topic: str) -> str:
        """Return the name on the broker of a topic of the table."""
        return self.prefix + topic

    def settings(self, redis_url: str | None = None) -> StreamSettings:
        """Return settings that point at these topics."""
        return StreamSettings(
            kafka_bootstrap_servers=self.broker.bootstrap,
            redis_url=redis_url,
            partitions=self.partitions,
            topic_prefix=self.prefix,
        )

    def environment(self, redis_url: str) -> dict[str, str]:
        """Return the same as the environment of a child process."""
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap,
            "REDIS_URL": redis_url,
            "MILLSTREAM_PARTITIONS": str(self.partitions),
            "MILLSTREAM_TOPIC_PREFIX": self.prefix,
        }


def docker_engine_answers() -> bool:
    """Return whether a Docker engine answers a ping."""
    docker = importlib.import_module("docker")  # not an import: type checkers would find the folder of this name
    try:
        return bool(docker.from_env(timeout=3).ping())
    except docker.errors.DockerException:
        return False


def missing(kind: Kind, environment: Mapping[str, str]) -> str | None:
    """Return why a broker of `kind` cannot be had, or None when nothing speaks against it."""
    if kind == "given":
        return None if environment.get("KAFKA_BOOTSTRAP_SERVERS") else "KAFKA_BOOTSTRAP_SERVERS is not set"
    if kind == "kafka-home":
        return None if environment.get("KAFKA_HOME") else "KAFKA_HOME is not set"
    if kind == "docker":
        return None if docker_engine_answers() else "no Docker engine answers"
    try:
        broker_program()
    except ServerStartError as error:
        return str(error)
    return None


def choose(environment: Mapping[str, str]) -> tuple[Kind | None, str]:
    """Return the kind of broker to use, or None, and the reason."""
    asked = environment.get("MILLSTREAM_TEST_BROKER") or "auto"
    if asked != "auto" and asked not in KINDS:
        raise pytest.UsageError(f"MILLSTREAM_TEST_BROKER={asked} must be auto or one of {', '.join(KINDS)}.")
    reasons = []
    for kind in KINDS:
        if asked in ("auto", kind):
            reason = missing(kind, environment)
            if reason is None:
                return kind, f"MILLSTREAM_TEST_BROKER={asked}"
            reasons.append(f"{kind}: {reason}")
    return None, "; ".join(reasons)


@asynccontextmanager
async def running(kind: Kind, environment: Mapping[str, str]) -> AsyncIterator[Broker]:
    """Start a broker of `kind` where it does not run already, and stop what was started."""
    if kind == "given":
        yield Broker(kind, environment["KAFKA_BOOTSTRAP_SERVERS"])
    elif kind == "kafka-home":
        async with ApacheKafka(Path(environment["KAFKA_HOME"])) as kafka:
            yield Broker(kind, kafka.bootstrap)
    elif kind == "docker":
        from testcontainers.community.kafka import KafkaContainer

        with KafkaContainer().with_kraft() as container:
            yield Broker(kind, container.get_bootstrap_server())
    else:
        async with EmbeddedBroker() as embedded:
            yield Broker(kind, embedded.bootstrap)


def skip_or_fail(reason: str) -> None:
    """Skip the test with `reason`; on CI (CI=true) fail it, so that a missing server cannot pass for a success."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"on CI this test may not be skipped: {reason}")
    pytest.skip(reason)
