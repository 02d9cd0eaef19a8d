"""The archiver's shell: examples from Kafka into part files, which base training reads.

The names of the files are the state: each says which offsets of which partition it holds. A restart goes on behind the
last one, so that a kill leaves neither a gap nor a row twice; offsets are committed only when a file holds them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog

from learners.features.spec import FeatureSpec
from stream.agents.inbox import Inbox
from stream.archive.part_buffer import ArchiveConfig, ArchivePart, PartBuffer
from stream.archive.store import ArchiveStore
from stream.kafka.broker import Broker
from stream.kafka.gaps import LogGaps, report_loss
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogReader
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows
from stream.records.examples_codec import decode_examples
from stream.records.topics import EXAMPLES

_log = structlog.get_logger(__name__)


class ArchiveRunner:
    """Writes the examples of every assigned partition into files of its own."""

    topics = (EXAMPLES,)

    def __init__(
        self, broker: Broker, spec: FeatureSpec, config: ArchiveConfig, store: ArchiveStore, metrics: WorkerMetrics
    ) -> None:
        self.inbox = Inbox()
        self._broker = broker
        self._spec = spec
        self._config = config
        self._store = store
        self._metrics = metrics
        self._lost = metrics.counter("archive_lost_records_total")
        self._gaps = LogGaps(broker, EXAMPLES, self._lost, "archived")
        self._buffers: dict[int, PartBuffer] = {}
        self._offsets_to_commit: dict[TopicPartition, int] = {}

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Begin behind the newest file of each partition."""
        for partition in self._buffers.keys() - partitions:
            del self._buffers[partition]
        up_to = await asyncio.to_thread(self._store.up_to)
        async with LogReader(self._broker) as log:
            for partition in sorted(partitions - self._buffers.keys()):
                start = up_to.get(partition, 0)
                async for _ in log.read(EXAMPLES, partition, start):  # refuses a log that ends before the archive
                    break
                self._buffers[partition] = PartBuffer(partition, start, self._config)
                self._gaps.assigned((partition,))
                _log.info("archiver restored", partition=partition, next_offset=start)

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Take the records; write the parts that are complete."""
        for record in records:
            await self._take(self._buffers[record.partition], record)
        await self._gaps.check(time.monotonic())
        self._metrics.gauge("archive_waiting_rows").set(sum(map(len, self._buffers.values())))

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Go on where the files end: they name offsets, and a name cannot stand for two records.

        So the examples that the log holds from ``offset`` up to there will not be archived; they are counted and said.
        """
        next_offset = self._buffers[partition].next_offset
        if offset < next_offset:
            remedy = "if these rows matter, archive this log into a new folder (--archive), from its beginning"
            report_loss(self._lost, "archived", topic, partition, (offset, next_offset), remedy)

    async def tick(self) -> None:
        """Nothing: time is the watermark."""

    async def on_revoked(self) -> None:
        """Write what is there and forget the partitions."""
        for buffer in self._buffers.values():
            await self._write(buffer.take())
            self._note(buffer)
        self._buffers.clear()

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """For each partition the first offset of which the files do not hold all rows."""
        return self._offsets_to_commit

    async def _take(self, buffer: PartBuffer, record: InputRecord) -> None:
        """The group may have committed what these files lack, as when the folder is a new one."""
        async for missed in self._gaps.before(buffer.partition, buffer.next_offset, record.offset):
            await self._add(buffer, missed.offset, missed.value)
        buffer.skip_to(record.offset)
        if record.offset == buffer.next_offset:
            await self._add(buffer, record.offset, record.value)

    async def _add(self, buffer: PartBuffer, offset: int, value: bytes | None) -> None:
        try:
            rows, watermark_ms = decode_examples(value, self._spec)
        except RecordError:  # the learner puts such records aside; once is enough
            rows, watermark_ms = ExampleRows.empty(self._spec.id_columns, self._spec.dense_inputs), 0
        await self._write(buffer.add(rows, offset, watermark_ms))
        self._note(buffer)

    async def _write(self, parts: Sequence[ArchivePart]) -> None:
        for part in parts:
            await asyncio.to_thread(self._store.write, part, self._spec)
            self._metrics.counter("archived_rows_total").inc(len(part.rows))
            self._metrics.counter("archive_parts_total").inc()
            _log.info("part archived", offsets=part.log_range, rows=len(part.rows))

    def _note(self, buffer: PartBuffer) -> None:
        self._offsets_to_commit[EXAMPLES, buffer.partition] = buffer.first_waiting
