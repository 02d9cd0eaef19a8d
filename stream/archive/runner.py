"""The archiver's shell: examples from Kafka into part files, which base training reads.

The names of the files are the state: each says which offsets of which partition it holds. A restart goes on behind the
last one, so that a kill leaves neither a gap nor a row twice; offsets are committed only when a file holds them. While
the folder cannot be written, parts wait in memory, their partitions are not read on, and the write is tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog

from learners.examples.archive_parts import ArchiveError
from learners.features.spec import FeatureSpec
from stream.agents.inbox import Inbox
from stream.agents.store_health import StoreHealth
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
        self._health = StoreHealth("archive", store.url, metrics)
        self._partitions: frozenset[int] = frozenset()
        self._buffers: dict[int, PartBuffer] = {}  # of the partitions whose files were looked at
        self._unwritten: dict[int, list[ArchivePart]] = {}  # complete parts, in order; none where all are in files
        self._offsets_to_commit: dict[TopicPartition, int] = {}

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Begin behind the newest file of each partition."""
        self._partitions = partitions
        for partition in self._buffers.keys() - partitions:
            del self._buffers[partition]
            self._unwritten.pop(partition, None)
        await self._restore()

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Take the records; write the parts that are complete."""
        for record in records:
            if (buffer := self._buffers.get(record.partition)) is not None:  # else it is read again, see `_restore`
                await self._take(buffer, record)
        await self._gaps.check(time.monotonic())
        self._measure()

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Go on where the files end: they name offsets, and a name cannot stand for two records.

        So the examples that the log holds from ``offset`` up to there will not be archived; they are counted and said.
        """
        buffer = self._buffers.get(partition)
        if buffer is not None and offset < (next_offset := buffer.next_offset):
            remedy = "if these rows matter, archive this log into a new folder (--archive), from its beginning"
            report_loss(self._lost, "archived", topic, partition, (offset, next_offset), remedy)

    async def tick(self) -> None:
        """Try again what the folder refused; else nothing: time is the watermark."""
        if self._health.failing and self._health.may_write:
            await self._restore()
            for partition in list(self._unwritten):
                await self._write_waiting(partition)
            self._measure()

    async def on_revoked(self) -> None:
        """Write what is there and forget the partitions; what cannot be written is read again."""
        for partition, buffer in self._buffers.items():
            self._unwritten.setdefault(partition, []).extend(buffer.take())
            await self._write_waiting(partition, at_once=True)
        self._buffers.clear()
        self._unwritten.clear()
        self._partitions = frozenset()
        self._pause()

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
        self._unwritten.setdefault(buffer.partition, []).extend(buffer.add(rows, offset, watermark_ms))
        await self._write_waiting(buffer.partition)

    async def _restore(self) -> None:
        """Begin partitions that were assigned; none while the folder cannot be looked into.

        Records that come meanwhile are dropped, and read from the log before the first one that comes afterwards.
        """
        if not (missing := self._partitions - self._buffers.keys()):
            return
        try:
            up_to = await asyncio.to_thread(self._store.up_to)
        except Exception as error:  # noqa: BLE001 - of any store's client
            self._health.failed(error)
            self._pause()
            return
        self._health.wrote()  # until a write says otherwise
        async with LogReader(self._broker) as log:
            for partition in sorted(missing):
                start = up_to.get(partition, 0)
                async for _ in log.read(EXAMPLES, partition, start):  # refuses a log that ends before the archive
                    break
                self._buffers[partition] = PartBuffer(partition, start, self._config)
                self._gaps.assigned((partition,))
                _log.info("archiver restored", partition=partition, next_offset=start)
        self._pause()

    async def _write_waiting(self, partition: int, *, at_once: bool = False) -> None:
        """Write the parts of a partition in their order: a later one alone would say that the earlier were there."""
        parts = self._unwritten.get(partition, [])
        while parts and (at_once or self._health.may_write):
            try:
                await asyncio.to_thread(self._store.write, parts[0], self._spec)
            except ArchiveError:
                raise
            except Exception as error:  # noqa: BLE001 - of any store's client
                self._health.failed(error)
                break
            self._health.wrote()
            part = parts.pop(0)
            self._metrics.counter("archived_rows_total").inc(len(part.rows))
            self._metrics.counter("archive_parts_total").inc()
            _log.info("part archived", offsets=part.log_range, rows=len(part.rows))
        if not parts:
            self._unwritten.pop(partition, None)
        first = int(parts[0].offset[0]) if parts else self._buffers[partition].first_waiting
        self._offsets_to_commit[EXAMPLES, partition] = first
        self._pause()

    def _pause(self) -> None:
        stopped = (self._partitions - self._buffers.keys()) | self._unwritten.keys()
        self.inbox.paused = frozenset((EXAMPLES, partition) for partition in stopped)

    def _measure(self) -> None:
        unwritten = sum(len(part.rows) for parts in self._unwritten.values() for part in parts)
        self._metrics.gauge("archive_waiting_rows").set(unwritten + sum(map(len, self._buffers.values())))
