"""Keeps one partition's clicks in the store up to date with the examples topic, also after the store was away."""

from __future__ import annotations

import time

import numpy as np
import structlog
from numpy.typing import NDArray
from redis.exceptions import RedisError

from learners.features.spec import FeatureSpec
from stream.clicks.store import RedisClickStore
from stream.clicks.stored_clicks import StoredClicks
from stream.kafka.broker import Broker
from stream.kafka.log_reader import LogReader
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows, concat
from stream.records.examples_codec import decode_examples, refuse_settled
from stream.records.topics import EXAMPLES
from stream.records.validity import possible
from stream.servers.circuit_breaker import CircuitBreaker

_ROWS_A_CALL = 5_000

_log = structlog.get_logger(__name__)


class ClickSync:
    """The store holds all clicks before its fence. Where the fence is not what we left, it is filled from the log.

    A store that is away costs nothing but time: its clicks are in the log, and conversions wait until it is back.
    """

    def __init__(
        self, store: RedisClickStore, broker: Broker, spec: FeatureSpec, partition: int, metrics: WorkerMetrics
    ) -> None:
        self._store = store
        self._broker = broker
        self._spec = spec
        self._partition = partition
        self._failures = metrics.counter("click_store_failures_total")
        self._fence: int | None = None  # None: to be asked for
        self._breaker = CircuitBreaker("store of clicks", degraded=metrics.degraded)

    async def take(self, examples: ExampleRows, end: int) -> None:
        """Store what became known with the examples that end before offset ``end``."""
        if self._fence is None:
            return
        asked_s = time.monotonic()
        try:
            current = await self._store.put(self._partition, self._fence, end, examples)
        except (RedisError, OSError) as error:
            self._failed(error, asked_s)
            return
        self._breaker.record_success()
        self._fence = end if current == end else None

    async def catch_up(self, end: int) -> bool:
        """Bring the store up to offset ``end`` of the examples, if it is not there.

        False while it does not answer, and for a former owner of the partition, whose successor has brought it further.
        """
        if self._fence == end:
            return True
        if self._breaker.is_open:
            return False
        asked_s = time.monotonic()
        try:
            if self._fence is None:
                self._fence = await self._store.fence(self._partition)
            await self._read_log(end)
        except (RedisError, OSError) as error:
            self._failed(error, asked_s)
            return False
        self._breaker.record_success()
        return self._fence == end

    async def find(self, impression_ids: NDArray[np.uint64]) -> StoredClicks | None:
        """Those of the clicks that are known; None when the store does not answer."""
        asked_s = time.monotonic()
        try:
            return await self._store.find(self._partition, impression_ids)
        except (RedisError, OSError) as error:
            self._failed(error, asked_s)
            return None

    async def _read_log(self, end: int) -> None:
        parts = [ExampleRows.empty(self._spec.id_columns, self._spec.dense_inputs)]
        async with LogReader(self._broker) as log:
            start = self._fence or 0
            if (oldest := await log.oldest(EXAMPLES, self._partition)) > start and start:
                _log.warning(
                    "clicks are no longer in the log that the store lacks: their conversions will be rejected",
                    topic=EXAMPLES, partition=self._partition, offsets=(start, oldest),
                )  # fmt: skip
            async for record in log.read(EXAMPLES, self._partition, start, written_to=end):
                try:
                    parts.append(possible(decode_examples(record.value, self._spec)[0]))
                except RecordError as error:
                    if error.reason == "settled":
                        refuse_settled(EXAMPLES, self._partition, record.offset)
                    continue  # of another feature spec
                if sum(map(len, parts)) >= _ROWS_A_CALL:
                    await self._put(concat(parts), record.offset + 1)
                    parts = parts[:1]
        if end > start:  # else the partition's new owner has brought the store further: it is no longer ours to move
            await self._put(concat(parts), end)

    async def _put(self, examples: ExampleRows, end: int) -> None:
        if self._fence is not None:
            current = await self._store.put(self._partition, self._fence, end, examples)
            self._fence = end if current == end else None

    def _failed(self, error: Exception, asked_s: float) -> None:
        self._fence = None
        self._failures.inc()
        self._breaker.record_failure(error, time.monotonic() - asked_s)
