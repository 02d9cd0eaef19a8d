"""Follow the weights and the calibration topic into the hot model and the hot calibrator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from serving.calibrator import HotCalibrator
from serving.metrics import ServingMetrics
from serving.model import HotModel, OfferResult
from serving.snapshots import LoadedModel, NoSnapshotError
from serving.tasks import begin, end
from stream.kafka.admin import BrokerUnreachableError
from stream.kafka.broker import Broker
from stream.records.deltas import DeltaSpecError
from stream.records.topics import CALIBRATION, WEIGHTS
from stream.records.wire import CalibrationRecord, DeltaPart, SnapshotNotice
from stream.servers.logs import RateLimitedLog

log = structlog.get_logger()

RETRY_PAUSE_S = 2.0
_FIRST_STEP_BACK = 256  # records; four minutes of deltas, about the time between two snapshots


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
        self.rejection: str | None = None  # why the newest record could not be used
        self._broker = broker
        self._tp = TopicPartition(self.topic, 0)
        self._task: asyncio.Task[None] | None = None
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
        self.rejection = f"{self.topic}[0] {record.offset}: {detail}"
        self.metrics.rejected_records.labels(self.NAME, reason).inc()
        self.report("record not used", offset=record.offset, reason=reason, detail=detail)

    async def _run(self) -> None:
        while True:
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


class WeightsFollower(TopicFollower):
    """Offers every delta to the hot model; after a gap it brings the newest snapshot and reads on from there.

    A snapshot that led into the same gap once is not installed again: serving goes on with what it has until a newer
    one appears.

    Parameters
    ----------
    load : reads the newest snapshot; runs in a thread, so that requests are answered meanwhile.
    on_swap : called after every change of the model.
    on_install : called with a snapshot that is served from now on, before any request is scored with it.
    """

    NAME = WEIGHTS

    def __init__(
        self,
        broker: Broker,
        metrics: ServingMetrics,
        hot: HotModel,
        load: Callable[[], LoadedModel],
        on_swap: Callable[[], None] = lambda: None,
        on_install: Callable[[LoadedModel], None] = lambda _: None,
    ) -> None:
        super().__init__(broker, metrics)
        self._hot = hot
        self._load = load
        self._on_swap = on_swap
        self._on_install = on_install
        self._tried: tuple[int, int] | None = None  # snapshot, offset of the gap

    async def position(self, consumer: AIOKafkaConsumer) -> int:
        """An offset from which every version after the snapshot's is read: found by stepping back from the end."""
        begin = int((await consumer.beginning_offsets([self._tp]))[self._tp])
        end = int((await consumer.end_offsets([self._tp]))[self._tp])
        back = _FIRST_STEP_BACK
        while (at := end - back) > begin:
            consumer.seek(self._tp, at)
            fetched = await consumer.getmany(self._tp, timeout_ms=2000, max_records=1)
            version = _version(fetched.get(self._tp, []))
            if version is not None and version <= self._hot.snapshot_version:
                return at
            back *= 8
        return begin

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Offer each part; requests are answered between two of them."""
        for record in records:
            try:
                message = _weights_decoder.decode(record.value or b"")
                outcome = self._hot.offer(message) if isinstance(message, DeltaPart) else OfferResult.SKIPPED
            except msgspec.MsgspecError as error:
                self.reject(record, "malformed", str(error))
                continue
            except DeltaSpecError as error:
                self.reject(record, "spec", str(error))
                continue
            if outcome is OfferResult.GAP:
                await self._recover(record)
                return
            if outcome is OfferResult.SWAPPED:
                self.rejection = None
                self.metrics.swaps.inc()
            self._on_swap()
            await asyncio.sleep(0)

    async def _recover(self, record: ConsumerRecord) -> None:
        """Install the newest snapshot and seek behind it; without a new one, offer this record again later."""
        self.metrics.gaps.inc()
        try:
            loaded = await asyncio.to_thread(self._load)
        except (NoSnapshotError, ValueError, OSError) as error:
            self.reject(record, "gap", f"a gap, and no snapshot to fill it: {error}")
            await self._wait_at(record)
            return
        if self._tried == (loaded.version, record.offset):
            self.reject(record, "gap", f"a gap that snapshot {loaded.version}, the newest, does not fill")
            await self._wait_at(record)
            return
        self._tried = (loaded.version, record.offset)
        log.warning("gap in the weights, snapshot installed", replaced=self._hot.version, snapshot=loaded.version)
        self._hot.install(loaded.model, version=loaded.version, watermark_ms=loaded.watermark_ms)
        self._on_install(loaded)
        self.metrics.reloads.inc()
        self._consumer.seek(self._tp, await self.position(self._consumer))
        self._on_swap()

    async def _wait_at(self, record: ConsumerRecord) -> None:
        await asyncio.sleep(RETRY_PAUSE_S)
        self._consumer.seek(self._tp, record.offset)


class CalibrationFollower(TopicFollower):
    """Offers the newest state of every partition to the hot calibrator."""

    NAME = CALIBRATION

    def __init__(
        self,
        broker: Broker,
        metrics: ServingMetrics,
        hot: HotCalibrator,
        on_swap: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(broker, metrics)
        self._hot = hot
        self._on_swap = on_swap

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Offer the last record of each partition: a state is whole, so the older ones are not needed."""
        newest: dict[int, tuple[ConsumerRecord, CalibrationRecord]] = {}
        for record in records:
            try:
                message = _calibration_decoder.decode(record.value or b"")
            except msgspec.MsgspecError as error:
                self.reject(record, "malformed", str(error))
                continue
            newest[message.partition] = (record, message)
        for record, message in newest.values():
            try:
                self._hot.offer(message, await asyncio.to_thread(self._hot.decoded, message))
            except ValueError as error:
                self.reject(record, "schema", str(error))
            await asyncio.sleep(0)
        self._on_swap()


_weights_decoder = msgspec.msgpack.Decoder(DeltaPart | SnapshotNotice)
_calibration_decoder = msgspec.msgpack.Decoder(CalibrationRecord)


def _version(records: Sequence[ConsumerRecord]) -> int | None:
    """The version that the first record speaks of; None when there is none or it cannot be read."""
    try:
        return _weights_decoder.decode(records[0].value or b"").version if records else None
    except msgspec.MsgspecError:
        return None
