"""A Faust app around one runner: its agent only fills the inbox, its offsets are committed when the runner says so.

Faust gives group membership, rebalancing, flow control and supervision of its own parts. Acknowledgement is ours: the
topics are declared with ``acks=False``, so Faust neither tracks events (a low water that lags by a click window would
keep all of them in memory) nor commits, and an agent that failed cannot acknowledge what it did not do.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import faust
import structlog
from aiokafka.coordinator.assignors.range import RangePartitionAssignor  # type: ignore[import-untyped]
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from yarl import URL

from stream.broker import Broker
from stream.inbox import Assigned, InputRecord, Place, Runner

COMMIT_INTERVAL_S = 0.5
TICK_INTERVAL_S = 0.1
_MOST_ITEMS_AT_ONCE = 64  # so that publishing and commits come between, also while it catches up

_log = structlog.get_logger(__name__)


class AgentCrashedError(RuntimeError):
    """What Faust runs for an agent (its consumer, its coordinator) has ended."""


class AgentApp:
    """One agent: a Faust app with a consumer group of its own, and the task that works its inbox off.

    Parameters
    ----------
    name : of the agent; the group is ``millstream-<name>`` behind the topic prefix.
    on_failure : called once with the exception when the runner failed; the process must stop then.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        runner: Runner,
        on_failure: Callable[[BaseException], None],
        assignor: type[Any] = RangePartitionAssignor,
    ) -> None:
        self.name = name
        self._broker = broker
        self._runner = runner
        self._on_failure = on_failure
        self._data_dir = tempfile.mkdtemp(prefix="millstream-faust-")  # Faust wants one, and leaves it empty
        self._app = _faust_app(f"{broker.prefix}millstream-{name}", broker, assignor, self._data_dir)
        self._add_agent()
        self._app.on_partitions_assigned.connect(self._assigned)
        self._app.on_partitions_revoked.connect(self._revoked)
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = asyncio.Lock()  # a step of the runner, or a change of partitions
        self._committed: dict[Place, int] = {}
        self._taking = True
        self._ending = False
        self._settled = asyncio.Event()  # the first assignment was worked off, or the runner failed

    async def start(self) -> None:
        """Join the group and begin; returns once the first assigned partitions are restored."""
        self._app.in_worker = True
        self._tasks = [asyncio.create_task(self._guarded(loop())) for loop in (self._drain, self._tick, self._commits)]
        await self._app.start()
        await self._settled.wait()

    async def stop(self) -> None:
        """Take nothing more in, work off what was taken, store it, commit, leave the group."""
        self._taking = False
        await self._end_tasks()
        async with self._busy:
            while items := self._runner.inbox.take(_MOST_ITEMS_AT_ONCE):
                await self._runner.work(items)
            await self._leave_partitions()
        await self._leave_group()

    async def abandon(self) -> None:
        """Leave the group after a failure: nothing is stored, nothing committed."""
        self._taking = False
        await self._end_tasks()
        await self._leave_group()

    async def _leave_group(self) -> None:
        await self._app.stop()
        shutil.rmtree(self._data_dir, ignore_errors=True)

    def _add_agent(self) -> None:
        names = [self._broker.topic(topic) for topic in self._runner.topics]
        inputs = self._app.topic(
            *names, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", acks=False
        )

        async def agent(stream: Any) -> None:
            async for event in stream.noack().events():
                if self._taking:
                    await self._runner.inbox.put(self._record(event.message))

        self._app.agent(inputs, name=self.name)(agent)

    def _record(self, message: Any) -> InputRecord:
        headers = dict(message.headers or ())
        content_type = headers.get("content-type")
        return InputRecord(
            topic=self._broker.table_name(message.topic),
            partition=message.partition,
            offset=message.offset,
            value=message.value,
            produced_ms=round(message.timestamp * 1000),
            content_type=content_type.decode("latin-1") if content_type is not None else None,
        )

    async def _drain(self) -> None:
        inbox = self._runner.inbox
        while True:
            await inbox.filled()
            async with self._busy:
                items = inbox.take(_MOST_ITEMS_AT_ONCE)
                if items:
                    await self._runner.work(items)
            if any(isinstance(item, Assigned) for item in items):
                self._settled.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_INTERVAL_S)
            if self._app.crashed:  # a part of Faust ended: nothing would arrive any more, and nobody would be told
                raise AgentCrashedError(
                    f"Faust's part of agent {self.name} crashed: {self._app.crash_reason!r}. Nothing more is read; "
                    "the worker must be started again."
                ) from self._app.crash_reason
            async with self._busy:
                await self._runner.tick()

    async def _commits(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            await self._commit()

    async def _commit(self) -> None:
        ours = self._app.consumer.assignment()
        offsets = {
            TP(self._broker.topic(topic), partition): offset
            for (topic, partition), offset in self._runner.committable().items()
            if self._committed.get((topic, partition)) != offset
        }
        offsets = {place: offset for place, offset in offsets.items() if place in ours}
        if offsets and await self._app.consumer._commit(offsets):
            self._committed |= {(self._broker.table_name(p.topic), p.partition): at for p, at in offsets.items()}

    async def _assigned(self, sender: Any, assigned: set[TP], **_: Any) -> None:
        partitions = frozenset(place.partition for place in assigned)
        _log.info("partitions assigned", agent=self.name, partitions=sorted(partitions))
        self._runner.inbox.extend((Assigned(partitions),))

    async def _revoked(self, sender: Any, revoked: set[TP], **_: Any) -> None:
        """Faust delivers kept partitions again from their commit, so that all of them are let go."""
        if not revoked or not self._taking:
            return
        try:
            async with self._busy:
                self._runner.inbox.clear()
                await self._leave_partitions()
        except Exception as error:  # noqa: BLE001 - Faust would swallow it; it must end the process
            self._on_failure(error)

    async def _leave_partitions(self) -> None:
        await self._runner.give_up()
        await self._commit()
        self._committed.clear()

    async def _guarded(self, loop: Any) -> None:
        try:
            await loop
        except asyncio.CancelledError:
            if self._ending:
                raise
            self._fail(AgentCrashedError(f"A task of agent {self.name} was cancelled from within: it cannot go on."))
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be acknowledged after it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
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


def _faust_app(group: str, broker: Broker, assignor: type[Any], data_dir: str) -> Any:
    """A Faust app that reads bytes, makes no topics of its own, opens no port and keeps no tables."""

    class _ConsumerThread(AIOKafkaConsumerThread):
        def _create_worker_consumer(self, transport: Any) -> Any:
            consumer = super()._create_worker_consumer(transport)
            consumer._fetch_max_wait_ms = broker.fetch_max_wait_ms  # Faust's 1500 is the embedded broker's latency
            consumer._partition_assignment_strategy = (assignor,)
            if broker.idempotent:
                consumer._isolation_level = "read_committed"
            return consumer

    class _Consumer(Consumer):
        def _new_consumer_thread(self) -> Any:
            return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    class _Transport(Transport):
        Consumer = _Consumer

    class _App(faust.App):
        def _new_transport(self) -> Any:
            return _Transport(self.conf.broker_consumer, self)

    return _App(
        group,
        broker=[URL(f"kafka://{host}") for host in broker.bootstrap.split(",")],
        broker_credentials=broker.faust_credentials,
        datadir=data_dir,
        store="memory://",
        cache="memory://",
        web_enabled=False,
        autodiscover=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        reply_create_topic=False,
        table_standby_replicas=0,
        stream_wait_empty=False,
        stream_buffer_maxsize=256,
        worker_redirect_stdouts=False,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=4 << 20,
        broker_session_timeout=broker.session_timeout_s,
        broker_heartbeat_interval=broker.session_timeout_s / 4,
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_request_timeout=30.0,
    )
