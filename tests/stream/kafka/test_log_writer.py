"""Transactions among brokers that come and go."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError  # type: ignore[import-untyped]

from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Commits, Outgoing, TransactionalWriter
from stream.records.topics import CLICKS, EXAMPLES
from tests.brokers import Broker, TestTopics


async def test_a_broker_that_goes_away_while_it_is_asked_for_a_coordinator_ends_no_transaction(
    apache_kafka: Broker, kafka_topics: TestTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the transactions at the start, and of the group in the middle of one: another one is asked."""
    broker = await find_broker(kafka_topics.settings())
    send, closed = AIOKafkaClient.send, dict[str, int]()

    async def closing(client: AIOKafkaClient, node: int, request: Any, **options: Any) -> Any:
        if type(request).__name__ == "FindCoordinatorRequest" and closed.setdefault(str(vars(request)), 0) < 2:
            closed[str(vars(request))] += 1
            raise KafkaConnectionError("Connection closed")
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", closing)
    writer = TransactionalWriter(broker, f"{kafka_topics.prefix}owner")
    await writer.start()
    try:
        commits = Commits(broker.group("join"), {(CLICKS, 0): 7}, "")
        assert await writer.write([Outgoing(EXAMPLES, b"one", partition=0)], commits) == [0]
    finally:
        await writer.close()
    assert [*closed.values()] == [2, 2]
    async with LogReader(broker) as log:
        assert [record.value async for record in log.read(EXAMPLES, 0)] == [b"one"]
