"""Writing to the topics: a thin shell around one aiokafka producer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from stream.broker import Broker
from stream.records import DeadLetter
from stream.topics import DEADLETTER

MAX_RECORD_BYTES = 8 << 20  # the table's limit for columnar topics
REQUEST_ROOM_BYTES = 64 << 10  # headers of the batch around one record of the greatest size


class RecordProducer:
    """Acknowledged writes in the order of the calls, per partition; topics by their names in the table.

    A send that fails for good raises from `stored`: whoever waits must stop, since records that the log lacks
    would be lost. Idempotent wherever the broker can be.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._producer = AIOKafkaProducer(
            bootstrap_servers=broker.bootstrap,
            acks="all",
            linger_ms=0,  # a record waits for nobody: what rides together was put together before
            enable_idempotence=broker.idempotent,
            max_request_size=MAX_RECORD_BYTES + REQUEST_ROOM_BYTES,
            **broker.options,
        )

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()

    async def stop(self) -> None:
        """Send what waits, then disconnect."""
        await self._producer.stop()

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None = None, partition: int | None = None
    ) -> asyncio.Future[Any]:
        """Hand a record over; the future ends with its metadata (``.offset``) once it is stored."""
        future: asyncio.Future[Any] = await self._producer.send(
            self._broker.topic(topic), value, key=key, partition=partition
        )
        return future

    async def dead_letter(self, letter: DeadLetter) -> asyncio.Future[Any]:
        """Put rejected bytes aside."""
        return await self.send(DEADLETTER, msgspec.msgpack.encode(letter), key=letter.key())


async def stored(sends: Iterable[asyncio.Future[Any]]) -> list[Any]:
    """Wait until all the records are stored and return their metadata, in order. Raises the first failure."""
    return list(await asyncio.gather(*sends))
