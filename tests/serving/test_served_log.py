"""The served log when the broker is not there."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    MessageSizeTooLargeError,
    RequestTimedOutError,
)

from serving.metrics import ServingMetrics
from serving.served_log import ServedLog
from stream.kafka.admin import BrokerUnreachableError
from stream.kafka.broker import Broker, find_broker
from tests.brokers import TestTopics

NOWHERE = Broker(bootstrap="127.0.0.1:1", prefix="", partitions=1, idempotent=False)


async def test_without_a_broker_the_start_fails_and_says_where_it_looked() -> None:
    """The message names the address and the variable."""
    log = ServedLog(NOWHERE, ServingMetrics())
    with pytest.raises(BrokerUnreachableError, match=r"127\.0\.0\.1:1.*KAFKA_BOOTSTRAP_SERVERS"):
        await log.start()


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted(kafka_topics: TestTopics) -> None:
    """At the bound a write answers False and readiness has a reason; what was taken still reaches the broker."""
    metrics = ServingMetrics()
    log = ServedLog(await find_broker(kafka_topics.settings()), metrics, queue_bytes=1_000)
    await log.start()
    try:
        taken = [log.write(0, bytes(300)) for _ in range(5)]  # the sender had no chance to run yet
        assert taken == [True, True, True, False, False]
        assert log.trouble is not None
        assert await log.flush(20) == 0
        assert log.trouble is None
        assert metrics.registry.get_sample_value("millstream_served_records_total") == 3
        assert metrics.registry.get_sample_value("millstream_served_records_dropped_total") == 2
    finally:
        await log.stop()


async def test_a_broker_that_takes_records_slower_than_they_come_is_said_while_it_takes_any(
    kafka_topics: TestTopics,
) -> None:
    """Calls are shed then, so that none of their rows is dropped; without a broker answers go on."""
    log = ServedLog(await find_broker(kafka_topics.settings()), ServingMetrics(), queue_bytes=1_000)
    await log.start()
    try:
        log.write(0, bytes(900))
        assert log.congestion is None  # nothing was ever taken: this is no broker that is slow
        assert await log.flush(20) == 0
        log.write(0, bytes(900))
        assert log.congestion == "900 bytes of served records wait for the broker, 1000 may"
        assert await log.flush(20) == 0
        assert log.congestion is None
    finally:
        await log.stop()


async def test_a_record_that_the_broker_refuses_is_counted_and_stops_no_other(
    kafka_topics: TestTopics,
) -> None:
    """A record beyond the size limit can never be taken: it is given up, the next one goes through."""
    metrics = ServingMetrics()
    log = ServedLog(await find_broker(kafka_topics.settings()), metrics)
    await log.start()
    try:
        log.write(0, bytes(5 << 20))
        log.write(0, b"small")
        assert await log.flush(20) == 0
        assert metrics.registry.get_sample_value("millstream_served_records_total") == 1
        assert metrics.registry.get_sample_value("millstream_served_send_failures_total") == 1
        assert log.trouble is None
    finally:
        await log.stop()


class Stumbling:
    """A producer that refuses the first records with an error and takes the rest."""

    def __init__(self, *errors: KafkaError) -> None:
        self.errors = list(errors)
        self.taken: list[bytes] = []

    async def start(self) -> None:
        """Nothing."""

    async def stop(self) -> None:
        """Nothing."""

    async def send(self, topic: str, record: bytes, partition: int) -> asyncio.Future[None]:
        """Refuse or take."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.errors:
            future.set_exception(self.errors.pop(0))
        else:
            self.taken.append(record)
            future.set_result(None)
        return future


@pytest.mark.parametrize(
    ("error", "taken"),
    [(RequestTimedOutError(), [b"one", b"two"]), (MessageSizeTooLargeError(), [b"two"])],
)
async def test_records_are_out_of_order_only_while_one_is_sent_again(
    error: KafkaError, taken: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a record that was given up, when nothing else is sent: promises must not wait for ever."""
    producer = Stumbling(error)
    monkeypatch.setattr(Broker, "producer", lambda _, **__: producer)
    log = ServedLog(NOWHERE, ServingMetrics())
    await log.start()
    log.write(0, b"one")
    assert await log.flush(5) == 0
    assert not log.sends_out_of_order
    log.write(0, b"two")
    assert await log.flush(5) == 0
    assert producer.taken == taken
    assert not log.sends_out_of_order
    await log.stop()
