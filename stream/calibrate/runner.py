"""The calibrator's shell: examples from Kafka, each partition's calibration state to the calibration topic.

The topic is the state: a record holds a partition's sums and the first examples offset that is not in them, so that a
restart reads the newest record of its partitions and goes on there. Commits only say where to start reading.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial

import structlog

from calibration.config import CalibratorConfig
from learners.features.spec import FeatureSpec
from stream.agents.inbox import Inbox
from stream.calibrate.calibrator import PartitionCalibrator
from stream.kafka.broker import Broker
from stream.kafka.gaps import LogGaps
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogEndsEarlierError, LogReader, RecordRejects, sound
from stream.kafka.log_writer import LogWriter, Outgoing
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples_codec import decode_examples
from stream.records.internal import decode_calibration
from stream.records.seal import sealed
from stream.records.topics import CALIBRATION, EXAMPLES
from stream.records.wire import CalibrationRecord

_LOOK_EVERY_S = 5.0
_CANDIDATES = 4  # records of a partition, should the newest ones have states that cannot be read

_log = structlog.get_logger(__name__)


class CalibrateRunner:
    """Runs a `PartitionCalibrator` for every assigned partition.

    Parameters
    ----------
    newest_line : the newest model line in the store of snapshots, see `learners.snapshots.snapshot.newest_line`; 0:
    unknown.
    """

    topics = (EXAMPLES,)

    def __init__(
        self,
        broker: Broker,
        writer: LogWriter,
        spec: FeatureSpec,
        config: CalibratorConfig,
        publish_interval_s: float,
        metrics: WorkerMetrics,
        newest_line: Callable[[], int] = lambda: 0,
    ) -> None:
        self.inbox = Inbox()
        self._newest_line = newest_line
        self._line = 0
        self._looked_s = -_LOOK_EVERY_S
        self._broker = broker
        self._writer = writer
        self._spec = spec
        self._config = config
        self._publish_interval_s = publish_interval_s
        self._metrics = metrics
        lost = metrics.counter("calibration_lost_records_total")
        self._gaps = LogGaps(broker, EXAMPLES, lost, "counted for the calibration")
        self._calibrators: dict[int, PartitionCalibrator] = {}
        self._offsets_to_commit: dict[TopicPartition, int] = {}

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Restore the newest published state of each partition."""
        await self._look_for_line(time.monotonic())
        for partition in self._calibrators.keys() - partitions:
            del self._calibrators[partition]
        await self._restore(partitions - self._calibrators.keys())
        self._measure()

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Count the records' labels, then publish the states that are due."""
        await self._look_for_line(time.monotonic())
        for record in records:
            await self._take(self._calibrators[record.partition], record)
        await self._publish()
        await self._gaps.check(time.monotonic())
        self._measure()

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Count what the log holds from ``offset`` on, where it held other examples."""
        self._calibrators[partition].log_cut(offset)

    async def tick(self) -> None:
        """Nothing: time is the watermark."""

    async def on_revoked(self) -> None:
        """Publish every state that changed and forget them."""
        await self._publish(at_once=True)
        self._calibrators.clear()

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """For each partition the first offset that its published state does not hold."""
        return self._offsets_to_commit

    async def _look_for_line(self, now_s: float) -> None:
        """A new base stands in the store well before a row that its line served can come."""
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        try:
            self._line = max(self._line, await asyncio.to_thread(self._newest_line))
        except (OSError, ValueError) as error:
            _log.warning("the store of snapshots does not answer; lines go on as they are", error=str(error))
        for calibrator in self._calibrators.values():
            calibrator.newest_line = max(calibrator.newest_line, self._line)

    async def _restore(self, fresh: frozenset[int]) -> None:
        decode = partial(decode_calibration, partitions=self._broker.partitions)
        newest: defaultdict[int, deque[CalibrationRecord]] = defaultdict(lambda: deque(maxlen=_CANDIDATES))
        async with LogReader(self._broker, RecordRejects(self._metrics.rejected)) as log:
            async for record in sound(log, CALIBRATION, decode):
                newest[record.partition].append(record)
            for partition in sorted(fresh):
                self._calibrators[partition] = calibrator = self._calibrator(partition, newest[partition])
                if not await self._reaches(log, calibrator):
                    calibrator.log_cut(await log.end(EXAMPLES, partition) if calibrator.rows else 0)
        for partition in sorted(fresh):
            self._calibrators[partition].newest_line = max(self._calibrators[partition].newest_line, self._line)
            self._gaps.assigned((partition,))
            next_offset = self._calibrators[partition].next_offset
            _log.info("calibrator restored", partition=partition, next_offset=next_offset)

    async def _reaches(self, log: LogReader, calibrator: PartitionCalibrator) -> bool:
        """Whether the examples have come to its offset: else nothing would be counted until they do."""
        try:
            async with aclosing(log.read(EXAMPLES, calibrator.partition, calibrator.next_offset)) as examples:
                async for _ in examples:
                    break
        except LogEndsEarlierError as error:
            _log.warning("a calibration record names examples that the log does not hold", reason=str(error))
            self._metrics.rejected(CALIBRATION, "schema")
            return False
        return True

    def _calibrator(self, partition: int, records: Sequence[CalibrationRecord]) -> PartitionCalibrator:
        """Of the newest record whose state can be read; the examples after it are counted again."""
        plan = self._spec.slice_plan
        for record in reversed(records):
            try:
                return PartitionCalibrator(partition, self._config, self._publish_interval_s, record, plan=plan)
            except ValueError as error:
                _log.warning("calibration state dropped", partition=partition, reason=str(error))
                self._metrics.rejected(CALIBRATION, "schema")
        fresh = PartitionCalibrator(partition, self._config, self._publish_interval_s, plan=plan)
        if records:
            _log.warning("the calibration's evidence starts again", partition=partition)
            fresh.next_offset = min(one.next_offset for one in records)
            fresh.version = records[-1].version
        return fresh

    async def _take(self, calibrator: PartitionCalibrator, record: InputRecord) -> None:
        """The group may have committed what the state lacks, as when its topic was created again."""
        async for missed in self._gaps.before(calibrator.partition, calibrator.next_offset, record.offset):
            self._count(calibrator, missed.offset, missed.value)
        self._count(calibrator, record.offset, record.value)

    def _count(self, calibrator: PartitionCalibrator, offset: int, value: bytes | None) -> None:
        try:
            rows, watermark_ms = decode_examples(value, self._spec)
        except RecordError:  # the learner puts such records aside; once is enough
            calibrator.skip(offset)
            return
        if offset >= calibrator.next_offset:
            before, rejected = calibrator.rows, calibrator.rejected_rows
            calibrator.step(rows, offset, watermark_ms)
            self._metrics.counter("calibration_rows_total").inc(calibrator.rows - before)
            self._metrics.counter("calibration_rejected_rows_total").inc(calibrator.rejected_rows - rejected)

    async def _publish(self, *, at_once: bool = False) -> None:
        records = [
            record
            for calibrator in self._calibrators.values()
            if (record := calibrator.take_publication(at_once=at_once)) is not None
        ]
        await self._writer.write([Outgoing(CALIBRATION, sealed(r), key=b"%d" % r.partition) for r in records])
        self._offsets_to_commit |= {(EXAMPLES, record.partition): record.next_offset for record in records}
        self._metrics.counter("calibration_records_total").inc(len(records))

    def _measure(self) -> None:
        slowest_ms = min((one.watermark_ms for one in self._calibrators.values()), default=0)
        self._metrics.gauge("calibration_watermark_timestamp_seconds").set(slowest_ms / 1000)
