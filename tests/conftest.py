"""Real servers for the tests: a broker and a Redis for the session, fresh topics and an empty Redis for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from hypothesis import settings

from stream.embedded.redis import EmbeddedRedis
from stream.kafka.admin import delete_topics, ensure_topics
from stream.records.topics import topic_table
from tests.brokers import Broker, TestTopics, choose, running, skip_or_fail

USED_BROKERS = pytest.StashKey[list[str]]()
TEST_PARTITIONS = 4

settings.register_profile("millstream", deadline=None)  # a machine under load is slow, not wrong
settings.load_profile("millstream")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests over the session's broker: these run again on another one."""
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker("broker")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which brokers the tests ran on."""
    for line in config.stash.get(USED_BROKERS, []):
        terminalreporter.write_line(f"broker: {line}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the brokers of a test process to the one that reports."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["brokers"] = session.config.stash.get(USED_BROKERS, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over the brokers of a test process."""
    for line in getattr(node, "workeroutput", {}).get("brokers", []):
        _note(node.config, line)


def _note(config: pytest.Config, line: str) -> None:
    config.stash.setdefault(USED_BROKERS, []).append(line)


@pytest.fixture(scope="session")
async def broker(pytestconfig: pytest.Config) -> AsyncIterator[Broker]:
    """The session's broker: given, KAFKA_HOME, Docker or embedded (see tests/brokers.py)."""
    kind, reason = choose(os.environ)
    if kind is None:
        _note(pytestconfig, f"none ({reason})")
        skip_or_fail(f"no broker for this test: {reason}")
        return
    async with running(kind, os.environ) as started:
        _note(pytestconfig, f"{started} ({reason})")
        yield started


@pytest.fixture(scope="session")
async def apache_kafka(broker: Broker) -> Broker:
    """The session's broker where it is a real Kafka: for transactions, compaction, retention, time look-ups."""
    if broker.embedded:
        reason = "the embedded broker has no transactions, compaction or retention: set KAFKA_HOME"
        if os.environ.get("MILLSTREAM_TEST_BROKER") == "embedded":
            pytest.skip(reason)  # asked for by name: a run of its own covers the real broker
        skip_or_fail(reason)
    return broker


@pytest.fixture
async def kafka_topics(broker: Broker) -> AsyncIterator[TestTopics]:
    """All topics of the table, empty, under a prefix that no other test uses."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    table = topic_table(TEST_PARTITIONS, prefix=prefix)
    await ensure_topics(broker.bootstrap, table)
    yield TestTopics(broker, prefix, TEST_PARTITIONS, table)
    await delete_topics(broker.bootstrap, table)


@pytest.fixture(scope="session")
async def redis_server() -> AsyncIterator[str]:
    """The URL of the session's Redis: always our own, because tests empty it."""
    async with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture
async def redis_url(redis_server: str) -> str:
    """The URL of an empty Redis."""
    client = redis.asyncio.Redis.from_url(redis_server)
    await client.flushall()
    await client.script_flush()
    await client.aclose()
    return redis_server
