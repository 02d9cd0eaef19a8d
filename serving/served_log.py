"""Writes what was served to the served topic, without making a request wait for the broker."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import structlog
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, KafkaTimeoutError  # type: ignore[import-untyped]

from serving.metrics import ServingMetrics
from serving.tasks import begin, end
from stream.kafka.admin import BrokerUnreachableError
from stream.kafka.broker import Broker
from stream.records.topics import SERVED
from stream.servers.logs import RateLimitedLog

log = structlog.get_logger()

MAX_RECORD_BYTES = 4 << 20  # the served topic's limit
_RETRY_PAUSE_S = 0.2
_CONGESTED = 0.75  # of the queue: calls in flight need what is left
_TAKES_WITHIN_S = 2.0


class ServedLog:
    """A bounded queue before a producer. `write` returns at once; one task hands records on in their order.

    A record that the broker did not take is sent again until it is taken; the join drops a doubled row. When more
    than `queue_bytes` wait, new records are dropped, counted and reported by `trouble`: an ad server that cannot log
    goes on answering, but the impressions of the dropped records can never be learned.

    Parameters
    ----------
    broker : whose served topic is written. The producer need not be idempotent: doubles are harmless.
    """

    def __init__(
        self,
        broker: Broker,
        metrics: ServingMetrics,
        *,
        queue_bytes: int = 64 << 20,
    ) -> None:
        self.partitions = broker.partitions
        self._broker = broker
        self._topic = broker.topic(SERVED)
        self._metrics = metrics
        self._queue_bytes = queue_bytes
        self._queue: deque[tuple[int, bytes, bool]] = deque()  # partition, record, whether it failed before
        self._waiting_bytes = 0
        self._unacknowledged = 0
        self._sent_again = 0  # records that failed and wait to be taken after all
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None
        self._failing_since: float | None = None
        self._taken_at = 0.0
        self._report = RateLimitedLog(topic=self._topic)

    async def start(self) -> None:
        """Connect. Raises BrokerUnreachableError."""
        producer = self._broker.producer(max_request_size=MAX_RECORD_BYTES)
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise BrokerUnreachableError(
                f"no Kafka broker answered at {self._broker.bootstrap} ({type(error).__name__}: {error}): what is "
                "served could not be logged, so nothing could be learned from it. Check KAFKA_BOOTSTRAP_SERVERS and "
                "that the broker runs."
            ) from error
        self._producer = producer
        self._task = begin(self._send_all(producer), "send served records")

    def write(self, partition: int, record: bytes) -> bool:
        """Queue one record for a partition; False when the queue is full and the record was dropped."""
        if self._waiting_bytes + len(record) > self._queue_bytes:
            self._metrics.served_records_dropped.inc()
            self._report("served records are dropped", waiting_bytes=self._waiting_bytes, limit=self._queue_bytes)
            return False
        self._waiting_bytes += len(record)
        self._metrics.served_waiting_bytes.set(self._waiting_bytes)
        self._queue.append((partition, record, False))
        self._wake.set()
        return True

    @property
    def trouble(self) -> str | None:
        """Why what is served does not reach the broker, or None while it does."""
        if self._failing_since is not None:
            return f"the broker has refused served records for {time.monotonic() - self._failing_since:.0f} s"
        if self._waiting_bytes > self._queue_bytes / 2:
            return f"{self._waiting_bytes} bytes of served records wait for the broker, {self._queue_bytes} may"
        if self._task is not None and self._task.done():
            return "the task that sends served records has ended"
        return None

    @property
    def congestion(self) -> str | None:
        """Why nothing more should be served for a moment: the broker takes records, but slower than they come.

        While it takes none, answers go on and what does not fit is dropped; calls that are shed lose nothing.
        """
        if self._waiting_bytes <= _CONGESTED * self._queue_bytes or self._failing_since is not None:
            return None
        if time.monotonic() - self._taken_at > _TAKES_WITHIN_S:
            return None
        return f"{self._waiting_bytes} bytes of served records wait for the broker, {self._queue_bytes} may"

    @property
    def sends_out_of_order(self) -> bool:
        """Whether a record waits for its second sending: a promise written now would come before it."""
        return self._sent_again > 0

    async def flush(self, timeout_s: float) -> int:
        """Wait until the broker has taken everything; the number of records it has not after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._queue or self._unacknowledged:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            pass
        return len(self._queue) + self._unacknowledged

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Flush, then close; what could not be flushed is logged as lost."""
        if self._producer is None or self._task is None:
            return
        lost = await self.flush(timeout_s)
        if lost:
            log.error("served records lost at shutdown", records=lost, topic=self._topic)
        await end(self._task)
        try:
            async with asyncio.timeout(max(0.5, timeout_s / 4)):
                await self._producer.stop()
        except TimeoutError:
            log.warning("the producer did not close in time", topic=self._topic)

    async def _send_all(self, producer: AIOKafkaProducer) -> None:
        while True:
            while self._queue:
                partition, record, again = self._queue.popleft()
                self._unacknowledged += 1
                try:
                    sent = await producer.send(self._topic, record, partition=partition)
                except KafkaError as error:
                    self._done(partition, record, again, error)
                    await asyncio.sleep(_RETRY_PAUSE_S)
                    continue
                sent.add_done_callback(lambda f, p=partition, r=record, a=again: self._done(p, r, a, f.exception()))
            self._wake.clear()
            await self._wake.wait()

    def _done(self, partition: int, record: bytes, again: bool, error: BaseException | None) -> None:
        self._unacknowledged -= 1
        self._sent_again -= again
        self._settled.set()
        if error is None:
            self._failing_since = None
            self._taken_at = time.monotonic()
            self._metrics.served_records.inc()
            self._forget(record)
            return
        self._failing_since = self._failing_since or time.monotonic()
        self._metrics.served_send_failures.inc()
        self._report("served records are not taken", error=f"{type(error).__name__}: {error}")
        if isinstance(error, KafkaTimeoutError) or getattr(error, "retriable", False):
            self._sent_again += 1
            self._queue.append((partition, record, True))
            self._wake.set()
        else:
            self._metrics.served_records_dropped.inc()
            self._forget(record)

    def _forget(self, record: bytes) -> None:
        self._waiting_bytes -= len(record)
        self._metrics.served_waiting_bytes.set(self._waiting_bytes)
