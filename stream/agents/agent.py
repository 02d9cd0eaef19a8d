"""An agent: a source that fills a runner's inbox, the task that works it off, and the offsets that it has done with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog
from aiokafka.coordinator.assignors.range import RangePartitionAssignor  # type: ignore[import-untyped]

from stream.agents.inbox import Runner
from stream.agents.lag import Lag
from stream.agents.source import Source, SourceKind
from stream.kafka.broker import Broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_cuts import LogCut, LogWatch, report_cut
from stream.kafka.log_reader import LogReader
from stream.metrics import WorkerMetrics

COMMIT_INTERVAL_S = 0.5
TICK_INTERVAL_S = 0.1
_MAX_REST_S = 0.02

_log = structlog.get_logger(__name__)


class AgentCrashedError(RuntimeError):
    """What reads an agent's topics has ended."""


class Agent:
    """One consumer group member and its runner; a failure of either is reported once, and the process must stop then.

    Parameters
    ----------
    name : of the agent; the group is that of ``broker.group(name)``.
    on_failure : called once with the exception when the runner or the source failed.
    source : the library that reads.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        runner: Runner,
        on_failure: Callable[[BaseException], None],
        metrics: WorkerMetrics,
        *,
        assignor: type[Any] = RangePartitionAssignor,
        source: SourceKind = "faust",
    ) -> None:
        self.name = name
        self.source = _source(source)(broker.group(name), broker, runner.topics, assignor)
        self._runner = runner
        self._on_failure = on_failure
        self._broker = broker
        self._lag = Lag(name, runner.topics, metrics)
        self._watch = LogWatch(broker)
        self._cut_records = {t: metrics.counter("log_cut_records_total", agent=name, topic=t) for t in runner.topics}
        self._step_seconds = metrics.histogram("step_seconds", agent=name)
        self._inbox_records = metrics.gauge("inbox_records", agent=name)
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = asyncio.Lock()  # a step of the runner, or a change of partitions
        self._notice: frozenset[int] | None = None  # partitions that are ours and not restored yet
        self._partitions: frozenset[int] = frozenset()  # restored
        self._early: list[InputRecord] = []  # they came before the notice that their partitions are assigned
        self._committed: dict[TopicPartition, int] = {}
        self._assignments = 0  # so far, and revocations
        self._paused: frozenset[TopicPartition] = frozenset()
        self._taking = True
        self._ending = False
        self._failed = False  # nothing of the runner is stored any more: it may be ahead of what its log holds
        self._settled = asyncio.Event()  # the first assignment was worked off, or the runner failed

    async def start(self) -> None:
        """Join the group and begin; returns once the first assigned partitions are restored, or the agent failed."""
        self._tasks = [asyncio.create_task(self._guarded(loop())) for loop in (self._drain, self._tick, self._commits)]
        await self.source.start(self)
        await self._settled.wait()

    async def finish(self) -> None:
        """Take nothing more in, work off what was taken, store it, commit."""
        self._taking = False
        await self._end_tasks()
        async with self._busy:
            while records := self._runner.inbox.take():
                await self._work(records)
            await self._leave_partitions()

    async def abandon(self) -> None:
        """Take nothing more in after a failure: nothing is stored, nothing committed."""
        self._taking = False
        await self._end_tasks()

    async def leave(self) -> None:
        """Leave the group, once all is finished or abandoned; a rebalance under way can hold this up for long."""
        await self.source.stop()

    # ------------------------------------------------------------------------------------------ what the source says

    async def arrived(self, records: Sequence[InputRecord]) -> None:
        """These were read, of one partition; returns once there is room for more."""
        if not self._taking or not records:
            return
        if (cut := await self._watch.cut_before(records)) is not None:
            await self._take_cut(cut, records[0])
        if self._runner.inbox.skip_to:
            records = self._without_known(records)
        await self._put(records)

    def assigned(self, partitions: frozenset[int]) -> None:
        """These partitions are ours from here on; the runner restores them before it gets a record of them."""
        _log.info("partitions assigned", agent=self.name, partitions=sorted(partitions))
        self._assignments += 1
        self._watch.forget()
        self._paused = frozenset()
        self._notice = partitions
        self._runner.inbox.wake()

    async def revoked(self) -> None:
        """All partitions are revoked, once the step under way is stored."""
        if not self._taking:
            return
        self._assignments += 1
        try:
            async with self._busy:
                if self._failed:
                    return
                self._runner.inbox.clear()
                self._runner.inbox.skip_to.clear()
                self._watch.forget()
                self._early.clear()
                self._lag.reset()
                self._notice, self._partitions = None, frozenset()
                await self._leave_partitions()
        except Exception as error:  # noqa: BLE001 - the library would swallow it; it must end the process
            self._fail(error)

    # ----------------------------------------------------------------------------------------------- logs that were cut

    async def _put(self, records: Sequence[InputRecord]) -> None:
        if records:
            self._lag.arrived(records)
            await self._runner.inbox.put(records)

    async def _take_cut(self, cut: LogCut, first: InputRecord) -> None:
        """Let the runner know, behind what came before the cut; then see to it that all that is new comes.

        ``first`` is what came after it. Where the consumer was sent back to the beginning, it stands before the cut;
        where the log has grown again meanwhile, the consumer has passed over what lies between.
        """
        assignments = self._assignments
        while len(self._runner.inbox) and self._taking and assignments == self._assignments:
            await asyncio.sleep(_MAX_REST_S)
        async with self._busy:
            if not self._taking or assignments != self._assignments or cut.partition not in self._partitions:
                return  # who takes it over looks at its log
            report_cut(cut, self._cut_records[cut.topic])
            await self._runner.log_cut(cut.topic, cut.partition, cut.offset)
            self._committed.pop(cut.topic_partition, None)
        if first.offset < cut.offset:
            self._runner.inbox.skip_to[cut.topic_partition] = cut.offset
            await self.source.seek(cut.topic_partition, cut.offset)
            return
        async with LogReader(self._broker) as log:
            async for record in log.read(cut.topic, cut.partition, cut.offset, stop=first.offset):
                if assignments != self._assignments:
                    return
                await self._put([InputRecord.of(cut.topic, record)])

    def _without_known(self, records: Sequence[InputRecord]) -> list[InputRecord]:
        """The records but for those that are to be skipped; a partition that has come so far skips no more."""
        skip_to = self._runner.inbox.skip_to
        kept = [one for one in records if one.offset >= skip_to.get(one.topic_partition, 0)]
        for tp in {one.topic_partition for one in kept} & skip_to.keys():
            del skip_to[tp]
        return kept

    # ---------------------------------------------------------------------------------------------------------- loops

    async def _drain(self) -> None:
        inbox = self._runner.inbox
        while True:
            await inbox.filled()
            async with self._busy:
                if self._failed:
                    return
                began = time.monotonic()
                is_assigned = await self._take_over()
                await self._work(inbox.take())
            if is_assigned:
                self._settled.set()
            if not inbox.is_full:  # a step costs its share whatever it holds: as much time to gather as to work
                await asyncio.sleep(min(time.monotonic() - began, _MAX_REST_S))

    async def _take_over(self) -> bool:
        """Restore what was assigned, then work off what came of it before; whether there was anything assigned."""
        if self._notice is None:
            return False
        partitions, self._notice = self._notice, None
        await self._runner.on_assigned(partitions)
        for tp, offset in self._runner.inbox.skip_to.items():
            await self.source.seek(tp, offset)
        self._partitions = partitions
        early, self._early = self._early, []
        await self._work([record for record in early if record.partition in partitions])
        self._pause()
        return True

    async def _work(self, records: Sequence[InputRecord]) -> None:
        self._early += [record for record in records if record.partition not in self._partitions]
        if ours := [record for record in records if record.partition in self._partitions]:
            began = time.perf_counter()
            await self._runner.work(ours)
            self._step_seconds.observe(time.perf_counter() - began)
            self._lag.worked_off(ours)
            self._pause()
        self._inbox_records.set(len(self._runner.inbox))

    def _pause(self) -> None:
        if (wanted := self._runner.inbox.paused) != self._paused:
            self._paused = wanted
            self.source.pause(wanted)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_INTERVAL_S)
            if (reason := self.source.failure) is not None:
                raise AgentCrashedError(
                    f"What reads the topics of agent {self.name} crashed: {reason!r}. Nothing more is read; the worker "
                    "must be started again."
                ) from reason
            async with self._busy:
                if self._failed:
                    return
                await self._runner.tick()
                self._pause()
            self._lag.measure(self.source.unread())

    async def _commits(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            await self._commit()

    async def _commit(self) -> None:
        if self._failed:
            return
        ours = self.source.assignment()
        offsets = {
            tp: offset
            for tp, offset in self._runner.offsets_to_commit().items()
            if tp in ours and self._committed.get(tp) != offset
        }
        if offsets and await self.source.commit(offsets):
            self._committed |= offsets

    async def _leave_partitions(self) -> None:
        await self._runner.on_revoked()
        await self._commit()
        self._committed.clear()

    async def _guarded(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except asyncio.CancelledError:
            if self._ending:
                raise
            self._fail(AgentCrashedError(f"A task of agent {self.name} was cancelled from within: it cannot go on."))
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be acknowledged after it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Runs before anybody who waits for the step that failed."""
        self._failed, self._taking = True, False
        self._on_failure(error)
        self._settled.set()

    async def _end_tasks(self) -> None:
        """Let a step that is under way end, then cancel the loops."""
        async with self._busy:
            self._ending = True
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


def _source(kind: SourceKind) -> Callable[[str, Broker, Sequence[str], type[Any]], Source]:
    if kind == "aiokafka":
        from stream.agents.aiokafka_source import AiokafkaSource

        return AiokafkaSource
    from stream.agents.faust_source import FaustSource  # half a second that the other runner need not wait for

    return FaustSource
