"""The join's shell: inputs from Kafka, examples to Kafka, session features to Redis, dead letters put aside.

One step, in this order: feed the cores, write the examples, fold them into the session features behind the partition's
fence, only then let the low water of the inputs be committed. A process killed between any two of these finds on its
restart, in the examples topic and in the fence, what was done, and does the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.spec import FeatureSpec
from stream.broker import Broker
from stream.examples import ExampleRows
from stream.examples_log import decode_examples
from stream.inbox import Assigned, Inbox, InputRecord, Place
from stream.inputs import EventRows, decode_events, decode_served
from stream.join import JoinConfig, JoinCore, JoinOutput, Reject
from stream.log_reader import LogReader
from stream.metrics import JOIN_COUNTS, WorkerMetrics
from stream.producer import RecordProducer, stored
from stream.records import ExamplesRecord, RecordError
from stream.session_store import RedisSessionStore
from stream.sessions import Displays, Fence, SessionFold
from stream.topics import CLICKS, EXAMPLES, IMPRESSIONS, INPUTS, SERVED

MOST_ROWS_A_RECORD = 8_192  # 4 MB at 32 ids and 36 dense inputs: below the topic's limit
HEARTBEAT_MS = 500  # of event time: how far a watermark that brings no rows must move to be worth a record
_KINDS = {SETTLED: "settled", CORRECTION: "correction", CONVERSION: "conversion"}

_log = structlog.get_logger(__name__)


class FencedError(RuntimeError):
    """Another worker wrote the session features of a partition that this one joins."""


@dataclass(slots=True)
class _Partition:
    core: JoinCore
    fence: Fence
    watermark_ms: int = 0  # of the newest examples record
    displays: list[Displays] = field(default_factory=list)  # not folded yet
    unfolded: set[int] = field(default_factory=set)  # settled by examples of a step whose displays may not be folded
    impressions_end: int = 0  # the offset after the newest impressions record that was fed
    low_water: dict[str, int] = field(default_factory=dict)


class JoinRunner:
    """Runs a `JoinCore` for every assigned partition.

    Parameters
    ----------
    now_ms : the wall clock, or None when the records alone say what time it is: then idle inputs wait for ever.
    """

    topics = INPUTS

    def __init__(
        self,
        broker: Broker,
        producer: RecordProducer,
        store: RedisSessionStore,
        spec: FeatureSpec,
        config: JoinConfig,
        metrics: WorkerMetrics,
        now_ms: Callable[[], int] | None,
    ) -> None:
        self.inbox = Inbox()
        self._broker = broker
        self._producer = producer
        self._store = store
        self._spec = spec
        self._fold = SessionFold(spec)
        self._config = config
        self._metrics = metrics
        self._now_ms = now_ms
        self._partitions: dict[int, _Partition] = {}
        self._low_water: dict[Place, int] = {}
        self._rejects: list[tuple[int, Reject]] = []

    async def work(self, items: list[InputRecord | Assigned]) -> None:
        """Feed the records to their partitions' cores and store what comes out."""
        started = time.perf_counter()
        touched: set[int] = set()
        for item in items:
            if isinstance(item, Assigned):
                await self._assigned(item.partitions)
                continue
            if item.partition not in self._partitions:  # records may overtake the notice of the assignment
                await self._restore([item.partition])
            self._feed(item)
            touched.add(item.partition)
        await self._settle(touched)
        self._metrics.histogram("step_seconds", agent="join").observe(time.perf_counter() - started)
        self._metrics.gauge("inbox_records", agent="join").set(len(self.inbox))

    async def tick(self) -> None:
        """On the wall clock, let time pass for partitions in which nothing happens."""
        if self._now_ms is not None:
            await self._settle(set(self._partitions))

    async def give_up(self) -> None:
        """Forget all partitions; everything is in the log."""
        self._partitions.clear()

    def committable(self) -> Mapping[Place, int]:
        """The low water of every input."""
        return self._low_water

    # ------------------------------------------------------------------------------------------------- restore

    async def _assigned(self, partitions: frozenset[int]) -> None:
        """Restore what is ours now; let go of what is not, which a record that was under way can have brought back."""
        for partition in self._partitions.keys() - partitions:
            del self._partitions[partition]
        self._low_water = {}
        await self._restore(sorted(partitions))

    async def _restore(self, partitions: list[int]) -> None:
        """Rebuild what the examples topic holds of these partitions, and fold into the sessions what they lack."""
        fresh = [p for p in partitions if p not in self._partitions]
        async with LogReader(self._broker) as log:
            for partition in fresh:
                core = JoinCore(self._config, self._spec, partition)
                held = _Partition(core, await self._store.fence(partition))
                rows = await self._replay_examples(log, partition, held)
                self._partitions[partition] = held
                _log.info("partition restored", partition=partition, examples=rows, fence=held.fence)

    async def _replay_examples(self, log: LogReader, partition: int, held: _Partition) -> int:
        count, missing = 0, held.fence.examples
        async for record in log.read(EXAMPLES, partition, at_least=missing):
            try:
                rows, watermark_ms = decode_examples(record.value, self._spec)
            except RecordError:
                continue  # of another feature spec: its impressions are settled, its columns mean nothing here
            held.core.emitted(rows, watermark_ms)
            held.watermark_ms = max(held.watermark_ms, watermark_ms)
            count += len(rows)
            if record.offset >= missing and len(rows):
                held.unfolded.update(rows.impression_id[rows.kind == SETTLED].tolist())
                await self._fold_in(partition, held, rows, record.offset + 1)
        return count

    # ---------------------------------------------------------------------------------------------------- feed

    def _feed(self, record: InputRecord) -> None:
        held = self._partitions[record.partition]
        self._metrics.counter("input_records_total", topic=record.topic).inc()
        try:
            if record.topic == SERVED:
                held.core.served(decode_served(record.value, self._spec), record.offset)
                return
            rows = decode_events(record.topic, record.value, record.content_type)
        except RecordError as error:
            reject = Reject(record.topic, record.offset, error.reason, error.detail, record.value or b"")
            self._rejects.append((record.partition, reject))
            return
        if record.topic == IMPRESSIONS:
            _note_displays(held, rows, record.offset)
            held.core.impressions(rows, record.offset)
        elif record.topic == CLICKS:
            held.core.clicks(rows, record.offset, record.produced_ms)
        else:
            held.core.conversions(rows, record.offset)

    # -------------------------------------------------------------------------------------------------- settle

    async def _settle(self, partitions: set[int]) -> None:
        """Take what the cores know now and store it: examples, sessions, dead letters; then move the low water."""
        now_ms = self._now_ms() if self._now_ms else None
        outputs = {p: self._partitions[p].core.poll(now_ms) for p in sorted(partitions & self._partitions.keys())}
        letters = [await self._dead_letter(p, reject) for p, reject in self._rejects]
        self._rejects = []
        for partition, output in outputs.items():
            letters += [await self._dead_letter(partition, reject) for reject in output.rejects]
        await asyncio.gather(*(self._store_output(p, output) for p, output in outputs.items()))
        await stored(letters)
        for partition, output in outputs.items():
            self._low_water |= {(topic, partition): at for topic, at in output.low_water.items()}
        self._measure(outputs)

    async def _store_output(self, partition: int, output: JoinOutput) -> None:
        held = self._partitions[partition]
        sends = [
            await self._producer.send(EXAMPLES, record.encode(), partition=partition)
            for record in self._records(held, output)
        ]
        metadata = await stored(sends)
        examples_end = metadata[-1].offset + 1 if metadata else held.fence.examples
        if held.displays or (output.examples is not None and len(output.examples)):
            await self._fold_in(partition, held, output.examples, examples_end)

    def _records(self, held: _Partition, output: JoinOutput) -> list[ExamplesRecord]:
        """The examples in records below the topic's limit; only the last one carries the new watermark."""
        rows, watermark_ms = output.examples, output.watermark_ms
        if rows is None or not len(rows):
            step_ms = 1 if self._now_ms is None else HEARTBEAT_MS  # a replay waits for the very watermark
            if watermark_ms < held.watermark_ms + step_ms:
                return []
            rows = ExampleRows.empty(self._spec.id_columns, self._spec.dense_inputs)
        cuts = range(0, max(len(rows), 1), MOST_ROWS_A_RECORD)
        parts = [rows.take(slice(at, at + MOST_ROWS_A_RECORD)) for at in cuts]
        before_ms, held.watermark_ms = held.watermark_ms, max(held.watermark_ms, watermark_ms)
        marks = [before_ms] * (len(parts) - 1) + [held.watermark_ms]
        return [part.to_record(self._spec.hash, mark) for part, mark in zip(parts, marks, strict=True)]

    async def _fold_in(self, partition: int, held: _Partition, rows: ExampleRows | None, examples_end: int) -> None:
        displays, held.displays = _joined(held.displays), []
        fence = Fence(max(held.fence.displays, held.impressions_end), examples_end)
        outcomes = rows if rows is not None and len(rows) else None
        stands = await self._store.step(self._fold, partition, (held.fence, fence), displays, outcomes)
        if stands != fence:
            raise FencedError(
                f"the session features of partition {partition} stand at {stands}, this worker expected {held.fence}: "
                "another worker writes them. Nothing was written; this worker stops and will resume from the log. Run "
                "one worker on a broker without transactions."
            )
        held.fence = fence
        self._metrics.counter("session_steps_total").inc()

    async def _dead_letter(self, partition: int, reject: Reject) -> Any:
        self._metrics.counter("dead_letters_total", topic=reject.topic, reason=reject.reason).inc()
        return await self._producer.dead_letter(
            reject.topic, partition, reject.offset, reject.reason, reject.detail, reject.payload
        )

    def _measure(self, outputs: Mapping[int, JoinOutput]) -> None:
        metrics = self._metrics
        for output in outputs.values():
            for name, count in output.counts.items():
                if name in JOIN_COUNTS:
                    metrics.counter("join_rows_total", outcome=name).inc(count)
                else:
                    topic = next(t for t in INPUTS if name == f"rows_{t.split('.')[1]}")
                    metrics.counter("input_rows_total", topic=topic).inc(count)
            if output.examples is not None:
                for kind, count in zip(*np.unique(output.examples.kind, return_counts=True), strict=True):
                    metrics.counter("examples_total", kind=_KINDS[int(kind)]).inc(int(count))
        held = self._partitions.values()
        metrics.gauge("join_held_rows").set(sum(one.core.held_rows for one in held))
        metrics.gauge("join_waiting_events").set(sum(one.core.waiting_events for one in held))
        slowest_ms = min((one.watermark_ms for one in held), default=0)
        metrics.gauge("join_watermark_timestamp_seconds").set(slowest_ms / 1000)


def _note_displays(held: _Partition, rows: EventRows, offset: int) -> None:
    """Keep the displays for the session features, each once: a repeated impression is none.

    A process killed between its examples and its fold leaves rows that are settled although their displays are not
    folded. Their impressions are read again, since the low water had not passed them: the first decides.
    """
    held.impressions_end = max(held.impressions_end, offset + 1)
    first = held.core.first_displays(rows)
    if held.unfolded:
        for at, key in enumerate(rows.impression_id.tolist()):
            if key in held.unfolded:
                held.unfolded.discard(key)
                first[at] = True
    if offset >= held.fence.displays and first.any():
        held.displays.append(Displays(rows.user_key[first], rows.ts_ms[first]))


def _joined(displays: list[Displays]) -> Displays | None:
    if not displays:
        return None
    return Displays(np.concatenate([one.user_key for one in displays]), np.concatenate([one.ts_ms for one in displays]))
