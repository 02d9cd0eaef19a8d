"""The session features' shell: examples from Kafka, folded into the states in Redis.

The store is the state: a partition's fence in it is the first examples offset that its states do not hold, and a step
moves both at once. The log holds all the rest. So a step that the store did not take is not kept here: once the store
answers, the log is read again from where the store stands, wherever that is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

import numpy as np
import structlog
from redis.exceptions import RedisError

from learners.features.session_state import COUNTER, USER
from learners.features.spec import FeatureSpec
from stream.agents.inbox import Inbox
from stream.kafka.broker import Broker
from stream.kafka.gaps import report_loss
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogReader
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows
from stream.records.examples_codec import decode_examples, refuse_settled
from stream.records.topics import EXAMPLES
from stream.records.validity import possible
from stream.servers.circuit_breaker import CircuitBreaker
from stream.servers.fences import DamagedStoreError
from stream.sessions.fold import SessionFold, SessionStates
from stream.sessions.step import FoldedPartition, FoldStep, StepRows
from stream.sessions.store import RedisSessionStore

READ_SLICE_S = 0.5  # a reading of the log, so that a stop or a change of partitions need not wait until it ends

_log = structlog.get_logger(__name__)


class _Record(Protocol):
    """A record of the inbox or of the log."""

    @property
    def offset(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...


class SessionRunner:
    """Folds the examples of every assigned partition into its session states."""

    topics = (EXAMPLES,)

    def __init__(self, broker: Broker, store: RedisSessionStore, spec: FeatureSpec, metrics: WorkerMetrics) -> None:
        self.inbox = Inbox()
        self._broker = broker
        self._store = store
        self._spec = spec
        self._fold = SessionFold(spec)
        self._metrics = metrics
        self._breaker = CircuitBreaker("session store", degraded=metrics.degraded)
        self._step_rows = StepRows()
        self._one_step = asyncio.Lock()  # Redis works off one after the other: those that wait would count as slow
        self._partitions: dict[int, FoldedPartition] = {}
        self._offsets_to_commit: dict[TopicPartition, int] = {}
        _compile(self._fold)

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Fold what the log holds of these partitions; forget all others."""
        for number in self._partitions.keys() - partitions:
            del self._partitions[number]
        self._offsets_to_commit.clear()
        for number in sorted(partitions):
            partition = self._partitions.setdefault(number, FoldedPartition(number))
            self._note_fence(partition, partition.fence)
        await asyncio.gather(
            *(self._take(partition, []) for partition in self._partitions.values() if partition.fence is None)
        )
        self._pause_behind()

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Fold the records, each partition's in as few steps as their rows allow."""
        arrived: defaultdict[int, list[InputRecord]] = defaultdict(list)
        for record in records:
            arrived[record.partition].append(record)
        await asyncio.gather(*(self._take(self._partitions[p], those) for p, those in arrived.items()))
        self._pause_behind()

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Fold what the log holds from ``offset`` on, where it held other examples, on what was folded of those."""
        cut = self._partitions[partition]
        cut.cut, cut.behind = offset, True
        await self._catch_up(cut)
        self._pause_behind()

    async def tick(self) -> None:
        """Go on reading the log where the store stands behind it."""
        await asyncio.gather(
            *(self._catch_up(partition) for partition in self._partitions.values() if partition.behind)
        )
        self._pause_behind()

    async def on_revoked(self) -> None:
        """Forget all partitions: what was folded is in the store, everything else in the log."""
        self._partitions.clear()
        self._pause_behind()

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """For each partition the first offset that the store's states do not hold."""
        return self._offsets_to_commit

    # --------------------------------------------------------------------------------------------------------- restore

    async def _catch_up(self, partition: FoldedPartition, stop: int | None = None) -> None:
        """Fold what the log holds from the fence on, up to ``stop`` or to its end, for a while."""
        current = await self._query(partition, lambda: self._store.fence(partition.number))
        if current is None:
            return
        if partition.fence is not None and partition.fence != current:
            self._count_rewind(partition.number, partition.fence, current)
        self._note_fence(partition, current)
        if not await self._pass_over_cut(partition):
            return
        async with LogReader(self._broker) as log:
            partition.behind = not (
                await self._pass_over_lost(log, partition) and await self._replay(log, partition, stop)
            )
        if not partition.behind:
            _log.info("session states have caught up with the log", partition=partition.number, fence=partition.fence)

    async def _pass_over_cut(self, partition: FoldedPartition) -> bool:
        """Move the fence back to where the log was cut, if it was; whether it stands no further."""
        fence, cut = partition.fence or 0, partition.cut
        if cut is not None and cut < fence:
            moved = await self._query(partition, lambda: self._store.move_back(partition.number, fence, cut))
            if moved != cut:
                return False
            self._note_fence(partition, cut)
        partition.cut = None
        return True

    async def _pass_over_lost(self, log: LogReader, partition: FoldedPartition) -> bool:
        """Move the fence to the oldest record, if the log no longer reaches back to it."""
        fence, oldest = partition.fence or 0, await log.oldest(EXAMPLES, partition.number)
        if oldest <= fence:
            return True
        if not await self._apply(partition, FoldStep(oldest)):
            return False
        report_loss(
            self._metrics.counter("session_lost_records_total"),
            "folded into the session features",
            EXAMPLES,
            partition.number,
            (fence, oldest),
            "the features lack them until their states expire: keep the topic for as long as states live (rates of the "
            "feature spec), or let Redis keep its data (appendonly yes)",
        )
        return True

    async def _replay(self, log: LogReader, partition: FoldedPartition, stop: int | None) -> bool:
        """Fold from the log; whether everything up to ``stop``, or to the end, is folded now."""
        fence = partition.fence or 0
        step, deadline = FoldStep(fence), math.inf
        # The record before the fence is folded; it says how far in event time.
        reading = log.read(EXAMPLES, partition.number, max(fence - 1, 0), stop=stop, at_least=fence)
        async with aclosing(reading) as records:
            async for record in records:
                if record.offset < fence:
                    decoded = self._decoded(partition.number, record)
                    partition.watermark_ms = decoded[1] if decoded else 0
                    continue
                step.add(record.offset, self._decoded(partition.number, record))
                deadline = min(deadline, time.monotonic() + READ_SLICE_S)
                late = time.monotonic() > deadline
                if late or step.rows >= self._step_rows.most:
                    if not await self._apply(partition, step) or late:
                        return False
                    step = FoldStep(step.end)
        return await self._apply(partition, step)

    # ------------------------------------------------------------------------------------------------------------ fold

    async def _take(self, partition: FoldedPartition, records: list[InputRecord]) -> None:
        """Fold what the log holds before the records, then the records; what cannot be folded now is in the log."""
        if partition.behind:
            await self._catch_up(partition, stop=records[0].offset if records else None)
        if partition.behind or partition.fence is None:
            return
        step = FoldStep(partition.fence)
        for record in records:
            if record.offset < step.end:
                continue
            step.add(record.offset, self._decoded(partition.number, record))
            if step.rows >= self._step_rows.most:
                if not await self._apply(partition, step):
                    return
                step = FoldStep(step.end)
        await self._apply(partition, step)

    def _decoded(self, partition: int, record: _Record) -> tuple[ExampleRows, int] | None:
        """Rows and watermark; None for a record of another feature spec, or none at all, which the learner rejects.

        Raises SettledLogError for a log of labelled examples: it has no displays to fold.
        """
        try:
            rows, watermark_ms = decode_examples(record.value, self._spec)
            return possible(rows), watermark_ms
        except RecordError as error:
            if error.reason == "settled":
                refuse_settled(EXAMPLES, partition, record.offset)
            return None

    async def _apply(self, partition: FoldedPartition, step: FoldStep) -> bool:
        """Fold one step into the store; False when the store is away or stands elsewhere than expected."""
        fence = partition.fence or 0
        if step.end == fence:
            return True
        async with self._one_step:
            began = time.monotonic()
            current = await self._query(
                partition, lambda: self._store.step(self._fold, partition.number, fence, step.end, step.records)
            )
            seconds = time.monotonic() - began
        if current is None:
            self._step_rows.failed()
        if current != step.end:
            partition.behind = True  # behind the log, or behind where the store stands now
            return False
        self._step_rows.took(step.rows, seconds)
        self._note_fence(partition, current)
        partition.watermark_ms = max(partition.watermark_ms, step.watermark_ms)
        self._metrics.counter("session_steps_total").inc()
        self._metrics.counter("session_rows_total").inc(step.rows)
        return True

    def _count_rewind(self, partition: int, expected: int, current: int) -> None:
        """Report that the states are not those that were left: they are the fold of the log up to where they stand."""
        where = {"partition": partition, "expected": expected, "current": current}
        if current < expected:
            self._metrics.counter("session_rewinds_total", reason="behind").inc()
            _log.warning("the session store went back; what it lost is folded again from the log", **where)
        else:
            self._metrics.counter("session_rewinds_total", reason="ahead").inc()
            _log.info("the session store is ahead: another worker folds, or an answer was lost", **where)

    async def _query(self, partition: FoldedPartition, question: Callable[[], Awaitable[int]]) -> int | None:
        """The store's answer; None while it is away, without waiting for it again at once, and where it is cleared."""
        if self._breaker.is_open:
            return None
        asked_s = time.monotonic()
        try:
            try:
                answer = await question()
            except DamagedStoreError as error:
                await self._clear(partition, error)
                return None
        except (RedisError, OSError) as error:
            self._breaker.record_failure(error, time.monotonic() - asked_s)
            self._metrics.counter("session_store_failures_total").inc()
            return None
        self._breaker.record_success()
        return answer

    async def _clear(self, partition: FoldedPartition, error: DamagedStoreError) -> None:
        await self._store.clear(partition.number)
        partition.fence, partition.behind, partition.watermark_ms = 0, True, 0
        self._offsets_to_commit[EXAMPLES, partition.number] = 0
        self._metrics.counter("session_rewinds_total", reason="behind").inc()
        _log.error(
            "the session store held what no worker wrote; its states of the partition are folded again from the log",
            partition=partition.number,
            reason=str(error),
            remedy="look who else may write to this Redis",
        )

    def _note_fence(self, partition: FoldedPartition, fence: int | None) -> None:
        partition.fence = fence
        if fence is not None:
            self._offsets_to_commit[EXAMPLES, partition.number] = fence

    def _pause_behind(self) -> None:
        """Let the inbox bring nothing of partitions whose log is read here; expose how far the slowest has come."""
        partitions = self._partitions.values()
        self.inbox.paused = frozenset((EXAMPLES, partition.number) for partition in partitions if partition.behind)
        slowest_ms = min((partition.watermark_ms for partition in partitions), default=0)
        self._metrics.gauge("session_watermark_timestamp_seconds").set(slowest_ms / 1000)


def _compile(fold: SessionFold) -> None:
    """Fold nothing once: compiling the kernels takes seconds where no machine code is on the disk yet."""
    rows = ExampleRows.empty(fold.spec.id_columns, fold.spec.dense_inputs)
    fold.fold(SessionStates(fold.keys([rows]), np.zeros(0, USER), np.zeros(0, COUNTER)), [rows])
