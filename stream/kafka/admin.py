"""Topics on a broker: what is missing is created, what differs is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    TopicAlreadyExistsError,
    for_code,
)

from stream.kafka.aiokafka_internals import PatientAdmin
from stream.records.topics import Topic

CONNECT_TIMEOUT_S = 10.0
_SETTLE_TIMEOUT_S = 15.0  # a created topic is visible once its leader is chosen


class BrokerUnreachableError(RuntimeError):
    """No broker answered at the bootstrap address."""


class TopicMismatchError(RuntimeError):
    """A topic exists in a shape that this program cannot work with, or the broker refused to create it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which a broker's topic is not what the table says."""

    topic: str
    what: str  # "topic", "partitions" or the name of a topic setting
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} is {self.found}, the table says {self.wanted}"


@asynccontextmanager
async def _admin(bootstrap: str, options: Mapping[str, Any] | None, timeout_s: float) -> AsyncIterator[PatientAdmin]:
    client = PatientAdmin(bootstrap_servers=bootstrap, request_timeout_ms=int(timeout_s * 1000), **(options or {}))
    try:
        async with asyncio.timeout(timeout_s):
            await client.start()
    except (KafkaError, OSError, TimeoutError) as error:
        await client.close()
        raise _unreachable(bootstrap, timeout_s, error) from error
    try:
        yield client
    except (KafkaConnectionError, NodeNotReadyError) as error:
        raise _unreachable(bootstrap, timeout_s, error) from error
    finally:
        await client.close()


def _unreachable(bootstrap: str, timeout_s: float, error: Exception) -> BrokerUnreachableError:
    return BrokerUnreachableError(
        f"no Kafka broker answered at {bootstrap} within {timeout_s:g} s ({type(error).__name__}: {error}): "
        "topics can be neither read nor created, and no worker can start. Check KAFKA_BOOTSTRAP_SERVERS, "
        "KAFKA_SECURITY_PROTOCOL with its user or certificates, and that the broker runs, or unset "
        "KAFKA_BOOTSTRAP_SERVERS for the embedded one."
    )


async def cluster_id(bootstrap: str, options: Mapping[str, Any] | None = None) -> str:
    """What tells this cluster from others, as long as its data lives; "" where it does not say."""
    async with _admin(bootstrap, options, CONNECT_TIMEOUT_S) as client:
        return (await client.describe_cluster()).get("cluster_id") or ""


async def answers_metadata(bootstrap: str) -> bool:
    """Return whether a broker at `bootstrap` answers a metadata request and knows of a live broker."""
    try:
        async with _admin(bootstrap, None, 2.0) as client:
            return bool((await client.describe_cluster())["brokers"])
    except (BrokerUnreachableError, KafkaError, OSError):
        return False


async def _partition_counts(client: PatientAdmin) -> dict[str, int]:
    """Return the partition count of every topic whose every partition has a leader.

    All topics are asked for: asking by name would create a missing one where the broker creates topics by itself.
    """
    counts: dict[str, int] = {}
    for topic in await client.describe_topics():
        if topic["error_code"] == 0 and all(p["leader"] >= 0 for p in topic["partitions"]):
            counts[topic["topic"]] = len(topic["partitions"])
    return counts


async def ensure_topics(
    bootstrap: str,
    table: Sequence[Topic],
    options: Mapping[str, Any] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> list[str]:
    """Create the topics of `table` that are missing, wait until they can be used, and return their names.

    `options` are the security settings of the client (`kafka_client_options`). Existing topics are left as they are.
    Raises BrokerUnreachableError, and TopicMismatchError when partition counts differ or the broker refuses one.
    """
    async with _admin(bootstrap, options, timeout_s) as client:
        existing = await _partition_counts(client)
        _refuse_other_partition_counts(existing, table)
        missing = [topic for topic in table if topic.name not in existing]
        if missing:
            await _create(client, missing)
            await _wait_until_visible(client, missing, bootstrap)
        return [topic.name for topic in missing]


def _refuse_other_partition_counts(existing: Mapping[str, int], table: Sequence[Topic]) -> None:
    wrong = [t for t in table if existing.get(t.name, t.partitions) != t.partitions]
    if wrong:
        found = ", ".join(f"{t.name} has {existing[t.name]} partitions, the table says {t.partitions}" for t in wrong)
        raise TopicMismatchError(
            f"{found}: rows of one user would be spread over workers that do not share them. Set MILLSTREAM_PARTITIONS "
            "to the number the topics have, or delete and create them again (their records are lost)."
        )


async def _create(client: PatientAdmin, topics: Sequence[Topic]) -> None:
    new = [NewTopic(t.name, t.partitions, t.replication_factor, topic_configs=t.config()) for t in topics]
    response = await client.create_topics(new)
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:  # another starting worker may have been faster
            raise TopicMismatchError(
                f"the broker refused to create {name}: {error.__name__} {message[0] if message else ''}. Without it no "
                "worker can start. Check MILLSTREAM_PARTITIONS, MILLSTREAM_REPLICATION_FACTOR (at most the number of "
                "brokers) and the right to create topics."
            )


async def _wait_until_visible(client: PatientAdmin, topics: Sequence[Topic], bootstrap: str) -> None:
    wanted = {topic.name for topic in topics}
    try:
        async with asyncio.timeout(_SETTLE_TIMEOUT_S):
            while not wanted <= (await _partition_counts(client)).keys():
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise TopicMismatchError(
            f"{', '.join(sorted(wanted))} were created at {bootstrap} but have no leader after "
            f"{_SETTLE_TIMEOUT_S:g} s: nothing can be written to them. Look at the brokers' logs."
        ) from error


async def delete_topics(
    bootstrap: str,
    table: Sequence[Topic],
    options: Mapping[str, Any] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> None:
    """Delete the topics of `table` with all their records; those that are missing already are no error.

    Raises BrokerUnreachableError.
    """
    async with _admin(bootstrap, options, timeout_s) as client:
        await client.delete_topics([topic.name for topic in table])


async def check_topics(
    bootstrap: str,
    table: Sequence[Topic],
    options: Mapping[str, Any] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> list[Difference]:
    """Compare the broker's topics with `table`: existence, partition counts, settings. Changes nothing.

    A setting that the broker does not report (the embedded one reports none) is not compared.
    Raises BrokerUnreachableError.
    """
    async with _admin(bootstrap, options, timeout_s) as client:
        existing = await _partition_counts(client)
        settings = await _settings(client, [topic.name for topic in table if topic.name in existing])
    differences = []
    for topic in table:
        if topic.name not in existing:
            differences.append(Difference(topic.name, "topic", "present", "missing"))
            continue
        if existing[topic.name] != topic.partitions:
            found = str(existing[topic.name])
            differences.append(Difference(topic.name, "partitions", str(topic.partitions), found))
        for setting, wanted in topic.config().items():
            value = settings[topic.name].get(setting, wanted)
            if value != wanted:
                differences.append(Difference(topic.name, setting, wanted, value))
    return differences


async def topic_settings(
    bootstrap: str,
    table: Sequence[Topic],
    options: Mapping[str, Any] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> dict[str, dict[str, str]]:
    """The settings of the topics of `table` by their names on the broker; none for those that it says nothing of.

    Raises BrokerUnreachableError.
    """
    async with _admin(bootstrap, options, timeout_s) as client:
        existing = await _partition_counts(client)
        return await _settings(client, [topic.name for topic in table if topic.name in existing])


async def _settings(client: PatientAdmin, names: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    if not names:
        return found
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    for response in await client.describe_configs(resources):
        for code, _, _, name, entries in response.resources:
            if code == 0:
                found[name] = {entry[0]: entry[1] for entry in entries}
    return found
