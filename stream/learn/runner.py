"""The learner's shell: examples from Kafka, journal and deltas to Kafka, snapshots to the store.

One step, in this order: learn, write the journal, publish, and now and then take a snapshot; only what a snapshot holds
is committed. A restart loads the newest snapshot, learns the journal's batches again, in their very rows, and goes on
from there: the same versions with the same weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from learners.deepfm.delta import Delta
from learners.features.spec import FeatureSpec
from learners.metrics.drift import DriftWatch
from learners.snapshots.snapshot import Snapshot, Written
from stream.agents.inbox import Inbox
from stream.agents.store_health import StoreHealth
from stream.kafka.broker import Broker
from stream.kafka.gaps import LogGaps
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogReader, RecordRejects
from stream.kafka.log_writer import LogWriter, Outgoing, open_writer
from stream.learn.config import LearningConfig
from stream.learn.line_calibration import LineCalibration
from stream.learn.loop import LearningLoop, LearnOutcome, LoopState
from stream.learn.published import last_published
from stream.learn.rebase import as_they_came, take_base
from stream.learn.relearn import hear_watermarks, loop_state, relearn
from stream.learn.reports import LearnReports
from stream.learn.snapshots import LearnSnapshots, first_snapshot, notice_of, unreachable
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows
from stream.records.examples_codec import decode_examples, refuse_settled
from stream.records.seal import sealed
from stream.records.topics import DEADLETTER, EXAMPLES, WEIGHTS

MAX_PART_BYTES = 4 << 20  # half of the topic's limit
_JOURNALED_AT_ONCE = 64  # learned batches that are sent to the broker together while nothing is published

_log = structlog.get_logger(__name__)


class LearnRunner:
    """Runs the one `LearningLoop` of a model, over all partitions; without all of them it stands by.

    Parameters
    ----------
    snapshots : directory or URL of the snapshots.
    wall_s : a clock for live input, None in a replay. With little traffic event time stands still until idle inputs
        stop holding it; a click must not wait for that, so what waits is learned and published every
        ``learn_interval_s`` of this clock too.
    now_ms : the time of day, where ``wall_s`` is given. A watermark beyond it is taken for now: with one of some far
        year time would stand still until then, and with it the snapshots.
    fresh_log : the broker was started just now: offsets in a snapshot are of another log and are dropped.
    open_writer : opens what the model's owner writes through.

    Made where an event loop runs: what watches for drift is loaded beside it.
    """

    topics = (EXAMPLES,)

    def __init__(
        self,
        broker: Broker,
        spec: FeatureSpec,
        config: LearningConfig,
        snapshots: str,
        metrics: WorkerMetrics,
        *,
        wall_s: Callable[[], float] | None = None,
        now_ms: Callable[[], int] = lambda: 1 << 62,
        fresh_log: bool = False,
        open_writer: Callable[[Broker, str], Awaitable[LogWriter]] = open_writer,
    ) -> None:
        self.inbox = Inbox()
        self._broker = broker
        self._open_writer = open_writer
        self._writer: LogWriter | None = None  # while the model is ours
        self._spec = spec
        self._config = config
        self._root = snapshots
        self._store_health = StoreHealth("snapshots", snapshots, metrics)
        self._snapshots = LearnSnapshots(snapshots, self._store_health, self._tell_snapshot)
        self._metrics = metrics
        self._fresh_log = self._embedded = fresh_log
        self._foreign_version = -1  # snapshots up to it are of another log
        self._wall_s = wall_s
        self._now_ms = now_ms
        self._acted_s = 0.0  # of the wall clock
        self._gaps = LogGaps(broker, EXAMPLES, metrics.counter("learn_lost_records_total"), "learned")
        self._loop: LearningLoop | None = None
        self._offsets_to_commit: dict[TopicPartition, int] = {}
        self._drift = asyncio.create_task(asyncio.to_thread(DriftWatch))  # made while the group is joined
        self._reports = LearnReports(spec, metrics, broker.record_bytes(DEADLETTER))

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Learn from the records, then publish what is due; nothing while it stands by."""
        if self._loop is None:
            return
        outcomes: list[LearnOutcome] = []
        conversions = self._loop.conversions
        self._loop.catching_up = self.inbox.is_full  # behind these, as many wait again
        for record in records:
            outcomes += await self._step(self._loop, record)
        self._metrics.counter("learned_conversions_total").inc(self._loop.conversions - conversions)
        await self._write([*self._reports.records(self._loop, outcomes), *self._publication(self._loop)])
        await self._go_on_with_snapshots(self._loop)
        await self._gaps.check(time.monotonic())
        self._reports.measure(self._loop)

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Learn what stands from ``offset`` on. The journal names what stood there: no restart may lead over it."""
        if self._loop is not None:
            self._loop.log_cut(partition, offset)
            await self._snapshots.end()
            await self._begin_snapshot(self._loop)
            await self._snapshots.end()

    async def tick(self) -> None:
        """On the wall clock, learn and publish what waits; try a snapshot again whose folder failed."""
        if self._loop is None:
            return
        await self._go_on_with_snapshots(self._loop)
        if self._wall_s is None:
            return
        now_s = self._wall_s()
        if now_s - self._acted_s >= self._config.learn_interval_s:
            self._acted_s = now_s
            journal = self._reports.records(self._loop, self._loop.flush())
            await self._write([*journal, *self._publication(self._loop, at_once=True)])

    async def on_revoked(self) -> None:
        """Publish, take a last snapshot, forget the model."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        await self._snapshots.end()
        await self._write(self._publication(loop, at_once=True))
        if loop.whole and loop.version > self._snapshots.version:
            await self._begin_snapshot(loop)
            await self._snapshots.end()
        await self.close()

    async def snapshot_written(self) -> None:
        """Wait for a snapshot that is under way."""
        await self._snapshots.written()

    async def close(self) -> None:
        """Release the model, without another record or snapshot."""
        await self._snapshots.written()
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()
        self._snapshots.release_folder()

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """For each partition the first offset of which the newest snapshot does not hold all rows."""
        return self._offsets_to_commit

    # ------------------------------------------------------------------------------------------------- restore

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Take the model over, if all partitions are ours: load it, learn again what the journal holds, publish."""
        if len(partitions) < self._broker.partitions:
            _log.info("another worker learns this model; standing by", partitions=sorted(partitions))
            return
        self._reports.drift_watch = await self._drift
        await self._snapshots.take_folder(self._broker, embedded=self._embedded, adopt=self._config.adopt_snapshots)
        if self._writer is None:
            self._writer = await self._open_writer(self._broker, self._broker.group("learn"))
        async with LogReader(self._broker, RecordRejects(self._metrics.rejected)) as log:
            if await take_base(
                log, self._root, self._spec, self._config, self._broker.partitions,
                new_log=self._fresh_log, on_full=self._store_health.failed,
            ):  # fmt: skip
                self._metrics.counter("learn_bases_total").inc()
            snapshot = await asyncio.to_thread(first_snapshot, self._root, self._spec)
            self._loop = loop = self._loop_of(snapshot)
            self._gaps.assigned(partitions)
            await self._relearn(log, loop, snapshot)
            published = await last_published(log)
            if published > loop.version:
                raise await unreachable(log, self._root, snapshot.version, loop.version, published)
            await asyncio.to_thread(loop.model.table.load_snapshot_kernels)
            if 0 < published < snapshot.version:  # a new base's, of which nothing was published yet
                loop.resume_after(published)
                await self._begin_line(log, loop, snapshot.version)
            else:
                loop.resume_after(max(snapshot.version, published))
                await self._write(self._publication(loop, at_once=True))
        _log.info("learner ready", snapshot=snapshot.version, version=loop.version, positions=loop.positions())
        self._reports.measure(loop)

    def _loop_of(self, snapshot: Snapshot) -> LearningLoop:
        if self._fresh_log:  # of a second assignment the log is the one that was written to
            self._foreign_version, self._fresh_log = snapshot.version, False
        self._snapshots.go_on_from(snapshot)
        return LearningLoop(
            snapshot.model(),
            self._config,
            self._broker.partitions,
            state=None if snapshot.version <= self._foreign_version else loop_state(snapshot),
            version=snapshot.version,
        )

    async def _begin_line(self, log: LogReader, loop: LearningLoop, base_version: int) -> None:
        """Learn all that came since a new base, then publish: a snapshot first, so that serving loads that one."""
        outcomes: list[LearnOutcome] = []
        tail = LineCalibration(self._spec.slice_plan)
        starts = {partition: loop.next_offset(partition) for partition in range(self._broker.partitions)}
        for partition, start in starts.items():
            self._gaps.begins(partition, start, await log.oldest(EXAMPLES, partition))
        async for record in as_they_came(log, starts):
            tail.observe(record.value, self._spec, loop.model)
            outcomes += await self._learn_record(loop, record.partition, record.offset, record.value)
            if len(outcomes) >= _JOURNALED_AT_ONCE:
                await self._write(self._reports.records(loop, outcomes))
                outcomes = []
        await self._write(self._reports.records(loop, outcomes))
        if loop.diverged:
            return
        if loop.version > base_version:
            self._snapshots.calibration = tail.to_bytes()
            self._snapshots.begin(loop.model, loop.state())
            await self._snapshots.end()
        loop.resume_from_base(base_version)
        await self._write(self._parts(loop.take_publication(at_once=True, in_silence=True) or loop.heartbeat()))
        _log.info("the new base's line is published", base=base_version, version=loop.version)

    async def _relearn(self, log: LogReader, loop: LearningLoop, snapshot: Snapshot) -> None:
        """Learn again what the journal holds beyond the snapshot; refuse a log that ends before the snapshot."""
        for partition, position in loop.positions().items():
            async for _ in log.read(EXAMPLES, partition, position.offset):
                break
        from_base = snapshot.created_from == "base" and snapshot.version > self._foreign_version
        await relearn(log, loop, self._spec, base_offsets=snapshot.offsets if from_base else {})
        await hear_watermarks(log, loop, self._spec, self._now_ms())
        if loop.diverged:
            self._reports.diverged(loop, "learned again, it diverges as it did before the restart")

    # ---------------------------------------------------------------------------------------------------- step

    async def _step(self, loop: LearningLoop, record: InputRecord) -> list[LearnOutcome]:
        """The group may have committed what this snapshot, older than that commit, lacks."""
        async for missed in self._gaps.before(record.partition, loop.next_offset(record.partition), record.offset):
            outcomes = await self._learn_record(loop, missed.partition, missed.offset, missed.value)
            await self._write(self._reports.records(loop, outcomes))
        self._metrics.counter("input_records_total", topic=EXAMPLES).inc()
        return await self._learn_record(loop, record.partition, record.offset, record.value)

    async def _learn_record(
        self, loop: LearningLoop, partition: int, offset: int, value: bytes | None
    ) -> list[LearnOutcome]:
        try:
            rows, watermark_ms = decode_examples(value, self._spec)
        except RecordError as error:
            if error.reason == "settled":
                refuse_settled(EXAMPLES, partition, offset)
            dead_letter = self._reports.dead_letter(partition, offset, error.reason, error.detail, value or b"")
            await self._write([dead_letter])
            rows, watermark_ms = ExampleRows.empty(self._spec.id_columns, self._spec.dense_inputs), 0  # it was read
        return loop.step(rows, partition, offset, min(watermark_ms, self._now_ms()))

    async def _write(self, records: Sequence[Outgoing]) -> None:
        """Store records in one go. Raises FencedError when another worker has taken the model over."""
        if records:
            assert self._writer is not None
            await self._writer.write(records)

    # ------------------------------------------------------------------------------------------------- publish

    def _publication(self, loop: LearningLoop, *, at_once: bool = False) -> list[Outgoing]:
        delta = loop.take_publication(at_once=at_once)
        return [] if delta is None else self._parts(delta)

    def _parts(self, delta: Delta) -> list[Outgoing]:
        return self._reports.published(delta, min(MAX_PART_BYTES, self._broker.record_bytes(WEIGHTS) // 2))

    async def _go_on_with_snapshots(self, loop: LearningLoop) -> None:
        await self._snapshots.end_if_done()
        if self._snapshots.is_due(loop):
            await self._begin_snapshot(loop)

    async def _begin_snapshot(self, loop: LearningLoop) -> None:
        """Begin a snapshot of the state as it is now, after publishing it."""
        await self._write(self._publication(loop, at_once=True))
        self._snapshots.begin(loop.model, loop.state())

    async def _tell_snapshot(self, state: LoopState, written: Written) -> None:
        """Say that there is a snapshot, and have it committed."""
        await self._write([Outgoing(WEIGHTS, sealed(notice_of(self._spec, state, written)), key=b"model")])
        self._offsets_to_commit = {(EXAMPLES, partition): at[0] for partition, at in state.positions.items()}
        self._metrics.counter("snapshots_total").inc()
        _log.info("snapshot written", version=state.version, url=written.url)
