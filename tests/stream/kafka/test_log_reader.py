"""Reading where the broker is away for a moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from stream.embedded.process import LOOPBACK
from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogReader
from stream.records.topics import EXAMPLES
from tests.brokers import TestTopics
from tests.chaos.ports import lasting_ports
from tests.chaos.proxy import Proxy


async def test_a_broker_that_cannot_be_reached_for_a_moment_is_waited_for(kafka_topics: TestTopics) -> None:
    """Who restores a partition, or asks how far a log reaches back, need not end for that."""
    broker = await find_broker(kafka_topics.settings())
    (port,) = lasting_ports(1)
    async with Proxy(port, int(broker.bootstrap.rpartition(":")[2])) as way:
        cut = asyncio.create_task(way.cut(1.0))
        await asyncio.sleep(0)
        async with LogReader(replace(broker, bootstrap=f"{LOOPBACK}:{port}")) as log:
            assert not way.is_cut
            assert await log.end(EXAMPLES, 0) == 0
        await cut
