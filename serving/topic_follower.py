"""Following a topic of which every serving process sees every record: no record ends it."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from serving.metrics import ServingMetrics
from serving.tasks import begin, end
from stream.kafka.admin import BrokerUnreachableError
from stream.kafka.broker import Broker
from stream.records.columns import RecordError
from stream.servers.logs import RateLimitedLog

log = structlog.get_logger()

RETRY_PAUSE_S = 2.0


class TopicFollower:
    """Reads partition 0 of one topic, alone, with no group: every serving process sees every record.

    Subclasses say which topic it is (`NAME`, without a prefix), where to begin (`position`) and what to do with records
    (`take`).
    """

    NAME: ClassVar[str]

    def __init__(
        self,
        broker: Broker,
        metrics: ServingMetrics,
    ) -> None:
        self.topic = broker.topic(self.NAME)
        self.metrics = metrics
        self.heard_at: float | None = None  # monotonic time of the last record
        self.caught_up = asyncio.Event()
        self.rejection: str | None = None  # why what came last leaves no state to serve
        self._broker = broker
        self._tp = TopicPartition(self.topic, 0)
        self._task: asyncio.Task[None] | None = None
        self._failures: set[tuple[str, str, int | None]] = set()  # whose traceback was logged
        self.report = RateLimitedLog(topic=self.topic)

    async def start(self) -> None:
        """Connect and begin to follow. Raises BrokerUnreachableError."""
        consumer = self._broker.consumer(auto_offset_reset="earliest")
        try:
            await consumer.start()
            consumer.assign([self._tp])
            consumer.seek(self._tp, await self.position(consumer))
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise BrokerUnreachableError(
                f"{self.topic} cannot be read at {self._broker.bootstrap} ({type(error).__name__}: {error}): serving "
                "would never learn anything new. Check KAFKA_BOOTSTRAP_SERVERS, that the broker runs, and that the "
                "topics exist (python -m stream topics --check)."
            ) from error
        self._consumer = consumer
        self._task = begin(self._run(), f"follow {self.topic}")

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            await end(self._task)
            await self._consumer.stop()

    @property
    def ended(self) -> bool:
        """Whether the task has died."""
        return self._task is not None and self._task.done()

    async def position(self, consumer: AIOKafkaConsumer) -> int:
        """The offset to begin at."""
        begin = await consumer.beginning_offsets([self._tp])
        return int(begin[self._tp])

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Use records, in the order of the topic."""
        raise NotImplementedError

    def reject(self, record: ConsumerRecord, reason: str, detail: str) -> None:
        """Count and log a record that could not be used."""
        self.metrics.rejected_records.labels(self.NAME, reason).inc()
        self.report("record not used", offset=record.offset, reason=reason, detail=detail)

    @contextmanager
    def guarded(self, record: ConsumerRecord) -> Iterator[None]:
        """Whatever using a record raises is that record's: it is put aside, and the following goes on."""
        try:
            yield
        except KafkaError:
            raise
        except RecordError as error:
            self.reject(record, error.reason, error.detail)
        except Exception as error:  # noqa: BLE001 - one record must not end what all others are needed for
            self._failed(error)
            self.reject(record, "error", f"{type(error).__name__}: {error}")

    async def before_fetch(self) -> None:
        """Called before each fetch, once a second at least."""

    def _failed(self, error: Exception) -> None:
        """Log a traceback, the first time that it comes from there: it may be a fault of the program."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = (type(error).__name__, where.filename, where.lineno)
        if kind not in self._failures:
            self._failures.add(kind)
            log.error("following failed, it goes on", topic=self.topic, exc_info=error)

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - a follower that ends makes every replica unready for good
                self._failed(error)
                self.metrics.rejected_records.labels(self.NAME, "error").inc()
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _follow(self) -> None:
        while True:
            await self.before_fetch()
            try:
                wait_ms = 1000 if self.caught_up.is_set() else 50
                fetched = await self._consumer.getmany(self._tp, timeout_ms=wait_ms)
                records = fetched.get(self._tp, [])
                if records:
                    self.heard_at = time.monotonic()
                    await self.take(records)  # after a gap it asks the broker where to read on
            except KafkaError as error:
                self.report("the broker does not answer", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            if not self.caught_up.is_set():
                # the end is what a fetch said it is: the embedded broker's answer to ListOffsets can be short
                end = self._consumer.highwater(self._tp)
                if end is not None and await self._consumer.position(self._tp) >= end:
                    self.caught_up.set()
