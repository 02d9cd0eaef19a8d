"""Whether the broker and Redis answer, and how soon: asked beside the work, which waits for them without a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from redis.asyncio import Redis

from stream.kafka.broker import Broker
from stream.records.topics import EXAMPLES

ASK_EVERY_S = 2.0
LATE_S = 1.0
"""An answer that takes longer is late: what waits for it falls behind."""

_LIMIT_S = 5.0
_LOOKS = 2  # in a row: one alone may be an election, or a step that kept the loop busy

_log = structlog.get_logger(__name__)


class UpstreamProbe:
    """Asks one of them; says so in ``degraded``, by its name, and in the log while it answers late or not at all."""

    def __init__(
        self,
        name: str,
        ask: Callable[[], Awaitable[object]],
        degraded: MutableMapping[str, str],
        *,
        late_s: float = LATE_S,
        limit_s: float = _LIMIT_S,
    ) -> None:
        self._name, self._ask, self._degraded = name, ask, degraded
        self._late_s, self._limit_s = late_s, limit_s
        self._amiss = 0  # looks in a row
        self._since_s = 0.0

    async def look(self) -> None:
        """Ask once; never raises."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._limit_s):
                await self._ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            self._note(began_s, f"does not answer within {self._limit_s:g} s: {type(error).__name__} {error!s:.300}")
            return
        took_s = time.monotonic() - began_s
        self._note(began_s, f"answers after {took_s:.1f} s" if took_s > self._late_s else None)

    def _note(self, began_s: float, amiss: str | None) -> None:
        if amiss is None:
            self._amiss = 0
            if self._degraded.pop(self._name, None) is not None:
                _log.info(f"{self._name} answers in time again", late_s=round(time.monotonic() - self._since_s, 1))
            return
        self._amiss += 1
        if self._amiss == 1:
            self._since_s = began_s
        if self._amiss < _LOOKS:
            return
        if self._name not in self._degraded:
            _log.warning(
                f"{self._name} {amiss}; what needs it waits, and is worked off afterwards", late_above_s=self._late_s,
                remedy="look at its load, at the way to it, and at how many files this process may open (ulimit -n)",
            )  # fmt: skip
        self._degraded[self._name] = amiss


class Upstreams:
    """Both probes, every `ASK_EVERY_S`; the broker is asked at the leader of every partition of the examples."""

    def __init__(self, broker: Broker, redis: Redis, degraded: MutableMapping[str, str]) -> None:
        self._broker, self._redis = broker, redis
        self._partitions = [TopicPartition(broker.topic(EXAMPLES), number) for number in range(broker.partitions)]
        self._consumer: AIOKafkaConsumer | None = None
        self._probes = (
            UpstreamProbe("broker", self._ask_broker, degraded),
            UpstreamProbe("redis", self._ask_redis, degraded),
        )

    async def watch(self) -> None:
        """Ask until cancelled."""
        try:
            await asyncio.gather(*(self._watch(probe) for probe in self._probes))
        finally:
            await self._disconnect()

    async def _watch(self, probe: UpstreamProbe) -> None:
        while True:
            await probe.look()
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask_broker(self) -> None:
        if self._consumer is None:
            consumer = self._broker.consumer()
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        await self._consumer.end_offsets(self._partitions)

    async def _ask_redis(self) -> None:
        await self._redis.ping()

    async def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
