"""Serving in this process, over the session's broker and Redis."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from learners.deepfm.config import DeepFMConfig
from serving.metrics import ServingMetrics
from serving.server import Clock, ServingOptions, ServingServer
from serving.settings import ServingSettings
from stream.kafka.broker import find_broker
from stream.records.topics import SERVED, WEIGHTS
from stream.records.wire import ServedRecord
from tests.brokers import TestTopics
from tests.learners.small_spec import SMALL
from tests.serving.trainer import CONFIG, Trainer, encoded


@dataclass
class Running:
    """A serving process's insides, an HTTP client for it, and the topics around it."""

    server: ServingServer
    http: aiohttp.ClientSession
    producer: AIOKafkaProducer
    topics: TestTopics
    trainer: Trainer
    snapshots: Path
    options: ServingOptions

    async def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a call."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self.http.post(path, data=data, headers=JSON) as response:
            return response.status, orjson.loads(await response.read())

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a page."""
        async with self.http.get(path) as response:
            return response.status, orjson.loads(await response.read())

    async def publish(self, topic: str, value: bytes) -> None:
        """Write one record and wait until the broker has it."""
        await self.producer.send_and_wait(self.topics.name(topic), value, key=b"0", partition=0)

    async def learn(self, **options: Any) -> int:
        """One step of the trainer, published; its version."""
        for part in self.trainer.step(**options):
            await self.publish(WEIGHTS, encoded(part))
        return self.trainer.version

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the server has come so far (the test's timeout bounds it)."""
        while not condition():
            await asyncio.sleep(0.005)

    async def served(self, rows: int) -> dict[int, list[ServedRecord]]:
        """The served topic by partition, once it holds that many rows."""
        partitions = [TopicPartition(self.topics.name(SERVED), p) for p in range(self.topics.partitions)]
        found: dict[int, list[ServedRecord]] = {tp.partition: [] for tp in partitions}
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.topics.broker.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            fetch_max_wait_ms=20,
        )
        await consumer.start()
        try:
            consumer.assign(partitions)
            for tp in partitions:
                consumer.seek(tp, 0)
            while sum(record.rows for records in found.values() for record in records) < rows:
                for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                    decoded = [msgspec.msgpack.decode(record.value, type=ServedRecord) for record in records]
                    found[tp.partition] += decoded
        finally:
            await consumer.stop()
        return found


JSON = {"Content-Type": "application/json"}
Start = Callable[..., Any]


@pytest.fixture
async def start(kafka_topics: TestTopics, redis_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Start serving on a fresh snapshot: ``await start(clock="log", settings=...)``; stopped after the test."""
    async with AsyncExitStack() as stack:

        async def run(
            clock: Clock = "log",
            settings: ServingSettings | None = None,
            redis: str = redis_url,
            ready: bool = True,
            model: DeepFMConfig = CONFIG,
        ) -> Running:
            trainer = Trainer(config=model)
            trainer.snapshot(tmp_path)
            broker = await find_broker(kafka_topics.settings(redis))
            options = ServingOptions(spec=SMALL, snapshots=str(tmp_path), broker=broker, redis_url=redis, clock=clock)
            server = ServingServer(options, settings or ServingSettings(), ServingMetrics())
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            await server.start(listener)
            stack.push_async_callback(server.stop)
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
            await producer.start()
            stack.push_async_callback(producer.stop)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            http = await stack.enter_async_context(aiohttp.ClientSession(url))
            running = Running(server, http, producer, kafka_topics, trainer, tmp_path, options)
            if ready:
                await running.until(lambda: not server.unready())
            return running

        yield run
