"""Follow the weights and the calibration topic into the hot model and the hot calibrator."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord  # type: ignore[import-untyped]

from learners.features.rows import Rows
from serving.calibrator import HotCalibrator
from serving.metrics import ServingMetrics
from serving.model import HotModel, OfferResult
from serving.snapshots import LoadedModel, NoSnapshotError
from serving.topic_follower import RETRY_PAUSE_S, TopicFollower
from stream.kafka.broker import Broker
from stream.records.columns import RecordError
from stream.records.deltas import DeltaSpecError
from stream.records.internal import decode_calibration, decode_weights
from stream.records.topics import CALIBRATION, WEIGHTS
from stream.records.wire import CalibrationRecord, DeltaPart

log = structlog.get_logger()

_FIRST_STEP_BACK = 256  # records; four minutes of deltas, about the time between two snapshots


class WeightsFollower(TopicFollower):
    """Offers every delta to the hot model; after a gap it brings the newest snapshot and reads on from there.

    A snapshot that led into the same gap once is not installed again: serving goes on with what it has until a newer
    one appears.

    Parameters
    ----------
    load : reads the newest snapshot; runs in a thread, so that requests are answered meanwhile.
    on_swap : called after every change of the model.
    on_install : called with a snapshot that is served from now on, before any request is scored with it.
    load_sound : reads the newest snapshot that scores some rows as numbers, in a thread; None: none is gone back to.
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
        load_sound: Callable[[Rows], LoadedModel] | None = None,
    ) -> None:
        super().__init__(broker, metrics)
        self._hot = hot
        self._load = load
        self._on_swap = on_swap
        self._on_install = on_install
        self._load_sound = load_sound
        self._go_back_at = 0.0  # monotonic
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
        if self._hot.unsound is not None:
            return  # they are read again from the snapshot that replaces it
        for at, record in enumerate(records):
            with self.guarded(record):
                if await self._take(record, records[at + 1 :]):
                    return
            await asyncio.sleep(0)

    async def _take(self, record: ConsumerRecord, later: Sequence[ConsumerRecord]) -> bool:
        """Offer one record; whether the topic is to be read on from elsewhere. Raises RecordError."""
        message = decode_weights(record.value)
        if not isinstance(message, DeltaPart):
            return False
        was_lost = self._hot.lost
        try:
            outcome = self._hot.offer(message)
        except DeltaSpecError as error:
            self._refuse(record, "spec", str(error))
            return False
        if outcome is OfferResult.GAP and self._hot.fault is not None:
            self._refuse(record, "schema", self._hot.fault)
            return False
        if outcome is OfferResult.GAP and not was_lost and self._goes_on(message, later):
            self._hot.goes_on()
            self.reject(record, "gap", f"version {message.version} follows none, the log goes on without it")
            return False
        if outcome is OfferResult.GAP:
            await self._recover(record)
            return True
        if outcome in (OfferResult.SWAPPED, OfferResult.HEARTBEAT):
            self.rejection = None  # what is in use is what the learner goes on from
        if outcome is OfferResult.SWAPPED:
            self.metrics.swaps.inc()
        self._on_swap()
        return False

    def _goes_on(self, stray: DeltaPart, later: Sequence[ConsumerRecord]) -> bool:
        """Whether one of the records behind a part that follows no version here does follow: then that one is a stray.

        A part of this line that is no heartbeat never is one: of it the next version would be missing.
        """
        if stray.parent <= self._hot.version:
            return False
        for record in later:
            with suppress(RecordError):
                found = decode_weights(record.value)
                if isinstance(found, DeltaPart) and found.parent == self._hot.version:
                    return True
        return False

    def _refuse(self, record: ConsumerRecord, reason: str, detail: str) -> None:
        """Weights that came and are none: there is nothing newer to serve until some come that are."""
        self.rejection = f"{self.topic}[0] {record.offset}: {detail}"
        self.reject(record, reason, detail)

    async def before_fetch(self) -> None:
        """After answers that were no numbers, go back to the newest version that scores the same rows as such."""
        unsound = self._hot.unsound
        if unsound is None or self._load_sound is None or time.monotonic() < self._go_back_at:
            return
        self._go_back_at = time.monotonic() + RETRY_PAUSE_S
        try:
            loaded = await asyncio.to_thread(self._load_sound, unsound.rows)
        except (NoSnapshotError, ValueError, OSError) as error:
            self.report("no sound snapshot to go back to", error=str(error))
            return
        if loaded.version == self._hot.version:
            return
        log.error("the model answers no numbers, another is installed", bad=unsound.version, snapshot=loaded.version)
        await self._install(loaded)

    async def _recover(self, record: ConsumerRecord) -> None:
        """Install the newest snapshot and seek behind it; without a new one, offer this record again later."""
        self.metrics.gaps.inc()
        try:
            loaded = await asyncio.to_thread(self._load)
        except (NoSnapshotError, ValueError, OSError) as error:
            self._refuse(record, "gap", f"a gap, and no snapshot to fill it: {error}")
            await self._wait_at(record)
            return
        if self._tried == (loaded.version, record.offset):
            self._refuse(record, "gap", f"a gap that snapshot {loaded.version}, the newest, does not fill")
            await self._wait_at(record)
            return
        self._tried = (loaded.version, record.offset)
        log.warning("gap in the weights, snapshot installed", replaced=self._hot.version, snapshot=loaded.version)
        await self._install(loaded)

    async def _install(self, loaded: LoadedModel) -> None:
        """Serve a snapshot, and read the topic on from behind it."""
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
        self._partitions = broker.partitions
        self._hot = hot
        self._on_swap = on_swap

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Offer the last record of each partition: a state is whole, so the older ones are not needed."""
        by_partition: defaultdict[int, list[tuple[ConsumerRecord, CalibrationRecord]]] = defaultdict(list)
        for record in records:
            with self.guarded(record):
                message = decode_calibration(record.value, self._partitions)
                by_partition[message.partition].append((record, message))
        for those in by_partition.values():
            for record, message in reversed(those):
                if await self._offer(record, message):
                    break
        self._on_swap()

    async def _offer(self, record: ConsumerRecord, message: CalibrationRecord) -> bool:
        """Offer a state; False when it cannot be used, so that the one before it must do."""
        with self.guarded(record):
            try:
                self._hot.offer(message, await asyncio.to_thread(self._hot.decoded, message))
            except ValueError as error:
                raise RecordError("schema", str(error)) from error
            await asyncio.sleep(0)
            return True
        return False


def _version(records: Sequence[ConsumerRecord]) -> int | None:
    """The version that the first record that can be read speaks of; None when there is none."""
    for record in records:
        with suppress(RecordError):
            return decode_weights(record.value).version
    return None
