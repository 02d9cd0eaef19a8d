"""The join's shell: inputs from Kafka, examples and dead letters to Kafka, clicks to Redis.

One step of a partition, in this order: feed the core, bring the exposures of late clicks, write what became known
together with the inputs' offsets, bring the store of clicks up to that, answer the conversions that asked for one. A
process killed anywhere finds on its restart, in the log, what was done, and does the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import numpy as np

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.spec import FeatureSpec
from stream.agents.inbox import Inbox
from stream.clicks.store import RedisClickStore
from stream.clicks.sync import ClickSync
from stream.join.arrival import UNBOUNDED_MS, Clock
from stream.join.backpressure import Backpressure
from stream.join.batches import events_batch, served_batch
from stream.join.config import JoinConfig
from stream.join.core import JoinCore
from stream.join.examples_cache import ExamplesCache
from stream.join.late import with_late_clicks
from stream.join.memory_bound import CACHE_MEMORY_SHARE, MemoryBound
from stream.join.output import JoinOutput
from stream.join.partition import JoinedPartition
from stream.join.rejects import Reject
from stream.kafka.broker import Broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogReader, RecordRejects
from stream.kafka.log_writer import Commits, Outgoing
from stream.metrics import JOIN_COUNTS, WorkerMetrics
from stream.records.examples import ExampleRows
from stream.records.examples_codec import split_rows
from stream.records.topics import CLICKS, DEADLETTER, EXAMPLES, IMPRESSIONS, INPUTS, SERVED
from stream.records.wire import DeadLetter

HEARTBEAT_EVENT_MS = 500  # how far a watermark that brings no rows must move to be worth a record
COMMIT_INTERVAL_S = 1.0  # between two commits of a partition in which nothing else is written
_MEASURE_INTERVAL_S = 0.05  # some ten MB can come meanwhile
_MAX_INBOX_RECORDS = 20_000  # one event each: a step takes some thousand
_MAX_STEP_RECORDS = 4_000
_KINDS = {EXPOSURE: "exposure", CLICK: "click", CONVERSION: "conversion"}


class JoinRunner:
    """Runs a `JoinCore` for every assigned partition.

    Parameters
    ----------
    now_ms : the wall clock, or None when the records alone say what time it is: then idle inputs wait for ever.
    salt : of the cores' hashes.
    ready : awaited before the first partition is taken over.
    """

    topics = INPUTS

    def __init__(
        self,
        broker: Broker,
        clicks: RedisClickStore,
        spec: FeatureSpec,
        config: JoinConfig,
        metrics: WorkerMetrics,
        now_ms: Callable[[], int] | None,
        *,
        salt: int = 0,
        most_unlearned_rows: int = 0,
        ready: Awaitable[None] | None = None,
    ) -> None:
        self.inbox = Inbox(max_items=_MAX_INBOX_RECORDS, at_once=_MAX_STEP_RECORDS)
        self._broker = broker
        self._group = broker.group("join")
        self._clicks = clicks
        self._spec = spec
        self._config = config
        self._metrics = metrics
        self._now_ms = now_ms
        self._salt = salt
        self._ready = ready
        self._examples_cache = ExamplesCache(broker, spec, int(config.join_memory_bytes * CACHE_MEMORY_SHARE))
        self._memory = MemoryBound(config, metrics, live=now_ms is not None)
        self._backpressure = Backpressure(broker, most_unlearned_rows, RecordRejects(metrics.rejected))
        self._partitions: dict[int, JoinedPartition] = {}
        self._measured_at = 0.0
        metrics.gauge("join_unlearned_limit_rows").set(most_unlearned_rows)

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Take over what is ours now; close what is not."""
        if self._ready is not None:
            await self._ready
            self._ready = None
        for partition in self._partitions.keys() - partitions:
            await self._partitions.pop(partition).close()
        await asyncio.gather(*map(self._take_over, sorted(partitions - self._partitions.keys())))

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Feed the records to their partitions' cores and store what comes out."""
        arrived: defaultdict[TopicPartition, list[InputRecord]] = defaultdict(list)
        for record in records:
            arrived[record.topic_partition].append(record)
        await self._feed(arrived)
        await self._settle({partition for _, partition in arrived})

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Take what stands in an input's log from ``offset`` on for new; what it held before was joined."""
        self._partitions[partition].log_cut(topic, offset)

    async def tick(self) -> None:
        """Let time pass, on the wall clock, where nothing happens; ask again for clicks of a store that was away."""
        waiting = {p for p, joined in self._partitions.items() if len(joined.core.wanted_clicks())}
        await self._settle(set(self._partitions) if self._now_ms is not None else waiting)
        if self._partitions:
            await self._backpressure.refresh()

    async def on_revoked(self) -> None:
        """Forget all partitions; everything is in the log."""
        partitions, self._partitions = self._partitions, {}
        for joined in partitions.values():
            await joined.close()
        await self._backpressure.stop()

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """The offset of every input; none where it is committed in the steps' transactions."""
        if self._broker.idempotent:
            return {}
        return {(topic, p): at for p, joined in self._partitions.items() for topic, at in joined.offsets.items()}

    # ------------------------------------------------------------------------------------------------------ take over

    async def _take_over(self, partition: int) -> None:
        core = JoinCore(self._config, partition, self._salt, self._broker.partitions)
        clicks = ClickSync(self._clicks, self._broker, self._spec, partition, self._metrics)
        now_ms = self._now_ms() if self._now_ms else UNBOUNDED_MS
        opened = JoinedPartition.open(self._broker, self._group, self._spec, core, clicks, self._metrics, now_ms)
        self._partitions[partition] = joined = await opened
        for topic in joined.cut:
            await self._read_cut_log(joined, topic)

    async def _read_cut_log(self, joined: JoinedPartition, topic: str) -> None:
        """Take in what the log holds now: the consumer begins at the commit, beyond its end or in the midst of it."""
        log_partition = topic, joined.partition
        start, records = joined.unread[topic], []
        async with LogReader(self._broker) as log:
            async for record in log.read(topic, joined.partition, start):
                records.append(InputRecord.of(topic, record))
                if len(records) == _MAX_STEP_RECORDS:
                    await self._feed({log_partition: records})
                    await self._settle({joined.partition})
                    records = []
        if records:
            await self._feed({log_partition: records})
        self.inbox.skip_to[log_partition] = joined.read[topic].next_offset if topic in joined.read else start

    # ----------------------------------------------------------------------------------------------------------- feed

    async def _feed(self, arrived: Mapping[TopicPartition, list[InputRecord]]) -> None:
        for (topic, partition), records in sorted(arrived.items(), key=lambda item: INPUTS.index(item[0][0])):
            joined = self._partitions[partition]
            self._metrics.counter("input_records_total", topic=topic).inc(len(records))
            self._decode(joined, topic, await joined.with_unread(self._broker, topic, records))
            joined.note_read(topic, records)

    def _decode(self, joined: JoinedPartition, topic: str, records: Sequence[InputRecord]) -> None:
        max_ahead_ms = self._config.ms("max_ahead_s")
        clock = Clock.of(self._now_ms(), self._config) if self._now_ms else None
        if topic == SERVED:
            served = served_batch(records, self._spec, max_ahead_ms, clock)
            joined.core.served(served.rows, served.records)
            joined.rejects += served.rejects
            return
        events = events_batch(topic, records, max_ahead_ms, clock)
        joined.rejects += events.rejects
        if topic == IMPRESSIONS:
            joined.core.impressions(events.rows, events.records)
        elif topic == CLICKS:
            joined.core.clicks(events.rows, events.records)
        else:
            joined.core.conversions(events.rows, events.records)

    # --------------------------------------------------------------------------------------------------------- settle

    async def _settle(self, partitions: set[int]) -> None:
        """Take what the cores know now and store it."""
        now_ms = self._now_ms() if self._now_ms else None
        await asyncio.gather(*(self._step(self._partitions[p], now_ms) for p in partitions))
        if (now := time.monotonic()) - self._measured_at >= _MEASURE_INTERVAL_S:
            self._measured_at = now
            self._bound_memory()
            self._measure()

    async def _step(self, joined: JoinedPartition, now_ms: int | None) -> None:
        core = joined.core
        while True:
            output = core.poll(now_ms)
            if output.late is not None:
                records = await self._examples_cache.find(joined.partition, output.late.wanted())
                output = with_late_clicks(output, records, joined.partition)
            await self._store(joined, output)
            self._count(output)
            if not len(wanted := core.wanted_clicks()) or not await joined.clicks.catch_up(joined.examples_end):
                return
            found = await joined.clicks.find(wanted)
            if found is None or not core.clicks_found(found):
                return

    async def _store(self, joined: JoinedPartition, output: JoinOutput) -> None:
        """Write one step, and pass it on to the core, the store of clicks and the backpressure."""
        records, first_rows = self._records(joined, output)
        rejects, joined.rejects = [*joined.rejects, *output.rejects], []
        moved = output.offsets != joined.offsets
        due = time.monotonic() - joined.written_at >= COMMIT_INTERVAL_S
        if not records and not rejects and not (moved and due):
            joined.core.stored([], [])
            return
        examples = [Outgoing(EXAMPLES, record, partition=joined.partition) for record in records]
        dead_letters = [self._dead_letter(joined.partition, reject) for reject in rejects]
        commits = Commits(
            self._group,
            {(topic, joined.partition): offset for topic, offset in output.offsets.items()},
            joined.metadata(output.resume),
        )
        offsets = (await joined.writer.write([*examples, *dead_letters], commits))[: len(examples)]
        joined.written_at, joined.offsets = time.monotonic(), output.offsets
        joined.core.stored(offsets, first_rows)
        if not offsets:
            return
        joined.examples_end = offsets[-1] + 1
        if (rows := output.examples) is not None:
            for offset, first, end in zip(offsets, first_rows, [*first_rows[1:], len(rows)], strict=True):
                if first < end:
                    self._examples_cache.remember(joined.partition, offset, rows.take(slice(first, end)))
                    self._backpressure.wrote(joined.partition, offset, end - first)
            await joined.clicks.take(rows, joined.examples_end)

    def _records(self, joined: JoinedPartition, output: JoinOutput) -> tuple[list[bytes], list[int]]:
        """The examples as records, and the row that each begins with; the last one carries the new watermark."""
        rows, watermark_ms = output.examples, max(output.watermark_ms, joined.watermark_ms)
        if rows is None:
            step_ms = 1 if self._now_ms is None else HEARTBEAT_EVENT_MS  # a replay waits for the very watermark
            if watermark_ms < joined.watermark_ms + step_ms:
                return [], []
            rows = ExampleRows.empty(self._spec.id_columns, self._spec.dense_inputs)
        *before, last = split_rows(rows, self._broker.record_bytes(EXAMPLES))
        marked = [*((part, joined.watermark_ms) for part in before), (last, watermark_ms)]
        joined.watermark_ms = watermark_ms
        records = [part.rows.to_record(self._spec.hash, mark).encode() for part, mark in marked]
        return records, [part.first_row for part, _ in marked]

    def _dead_letter(self, partition: int, reject: Reject) -> Outgoing:
        self._metrics.counter("dead_letters_total", topic=reject.topic, reason=reject.reason).inc()
        source = (reject.topic, partition, reject.offset)
        room = self._broker.record_bytes(DEADLETTER)
        dead_letter = DeadLetter.of(*source, reject.reason, reject.detail, reject.payload, record_bytes=room)
        return Outgoing(DEADLETTER, msgspec.msgpack.encode(dead_letter), key=dead_letter.key())

    # --------------------------------------------------------------------------------------------------------- memory

    def _bound_memory(self) -> None:
        """Keep the memory bound; say which inputs are to wait: those far ahead, or all, with a slow learner."""
        cores = {partition: joined.core for partition, joined in self._partitions.items()}
        paused = self._memory.enforce(cores)
        if self._backpressure.is_behind:
            paused = frozenset((topic, partition) for topic in INPUTS for partition in cores)
        self.inbox.paused = paused
        self._metrics.gauge("join_paused_partitions").set(len(paused))
        self._metrics.gauge("join_unlearned_rows").set(self._backpressure.unlearned_rows)

    # -------------------------------------------------------------------------------------------------------- measure

    def _count(self, output: JoinOutput) -> None:
        metrics = self._metrics
        for name, count in output.counts.items():
            if name in JOIN_COUNTS:
                metrics.counter("join_rows_total", outcome=name).inc(count)
            else:
                topic = next(t for t in INPUTS if name == f"rows_{t.split('.')[1]}")
                metrics.counter("input_rows_total", topic=topic).inc(count)
        if output.examples is not None:
            for kind, count in zip(*np.unique(output.examples.kind, return_counts=True), strict=True):
                metrics.counter("examples_total", kind=_KINDS[int(kind)]).inc(int(count))

    def _measure(self) -> None:
        metrics, partitions = self._metrics, self._partitions.values()
        metrics.gauge("join_pending_rows").set(sum(one.core.pending_rows for one in partitions))
        metrics.gauge("join_exposed_rows").set(sum(one.core.exposed_rows for one in partitions))
        metrics.gauge("join_waiting_display_rows").set(sum(one.core.waiting_displays for one in partitions))
        metrics.gauge("join_waiting_events").set(sum(one.core.waiting_events for one in partitions))
        reached_ms = [one.watermark_ms for one in partitions]
        metrics.gauge("join_watermark_timestamp_seconds").set(min(reached_ms, default=0) / 1000)
        metrics.gauge("join_furthest_watermark_timestamp_seconds").set(max(reached_ms, default=0) / 1000)
