"""A source on Faust: an app with one agent, which only hands on what it reads.

Faust gives group membership, rebalancing, flow control and supervision of its own parts. Its price is by the event, so
an event here is a fetch: all records that the consumer had fetched go through the agent's channel as one.
Acknowledgement is ours: nothing is tracked (a low water that lags by a click window would keep all of it in memory) or
committed by Faust, and an agent that failed cannot acknowledge what it did not do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import cached_property
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]
from aiokafka.coordinator.assignors.range import RangePartitionAssignor  # type: ignore[import-untyped]
from aiokafka.errors import IllegalStateError  # type: ignore[import-untyped]
from faust.auth import SASLCredentials, SSLCredentials
from faust.exceptions import ConsumerNotStarted
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from yarl import URL

from stream.agents.source import Listener
from stream.kafka.aiokafka_internals import read_in_this_way, unread_records
from stream.kafka.broker import Broker
from stream.kafka.input_record import InputRecord, TopicPartition

_FETCHES_AHEAD = 1
_MAX_FETCH_RECORDS = 2_000
_FAUST_COMMIT_INTERVAL_S = 0.5  # Faust has nothing to commit
_REQUEST_TIMEOUT_S = 30.0


class FaustSource:
    """A group member of Faust's.

    Parameters
    ----------
    group : of consumers, with the prefix. topics : by their names in the table.
    """

    def __init__(
        self,
        group: str,
        broker: Broker,
        topics: Sequence[str],
        assignor: type[Any] = RangePartitionAssignor,
    ) -> None:
        self._broker = broker
        self._listener: Listener | None = None
        self._paused: frozenset[TopicPartition] = frozenset()
        self.app = _faust_app(group, broker, assignor)
        self._add_agent([broker.topic(topic) for topic in topics])
        self.app.on_partitions_assigned.connect(self._assigned)
        self.app.on_partitions_revoked.connect(self._revoked)

    async def start(self, listener: Listener) -> None:
        """Join the group."""
        self._listener = listener
        self.app.in_worker = True
        await self.app.start()

    async def stop(self) -> None:
        """Leave the group."""
        await self.app.stop()

    @property
    def failure(self) -> BaseException | None:
        """What ended a part of Faust: nothing would arrive any more, and nobody would know."""
        if not self.app.crashed:
            return None
        reason: BaseException | None = self.app.crash_reason
        return reason or RuntimeError("Faust gave no reason")

    def assignment(self) -> frozenset[TopicPartition]:
        """What is read."""
        return frozenset(self._from_broker(tp) for tp in self._assignment())

    def unread(self) -> Mapping[TopicPartition, int]:
        """How many records of each partition were not handed on yet, as of the last fetch."""
        if not (assigned := self._assignment()):
            return {}
        unread = unread_records(self.app.consumer._thread._consumer, assigned)
        return {self._from_broker(tp): count for tp, count in unread.items()}

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit offsets; False when the group is rebalancing and they were not taken."""
        named = {TP(self._broker.topic(topic), partition): at for (topic, partition), at in offsets.items()}
        return bool(await self.app.consumer._commit(named))

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        """Read nothing more of these partitions, and of all others again."""
        consumer, ours = self.app.consumer, self.assignment()
        consumer.pause_partitions([self._to_broker(tp) for tp in (partitions - self._paused) & ours])
        consumer.resume_partitions([self._to_broker(tp) for tp in (self._paused - partitions) & ours])
        self._paused = partitions

    async def seek(self, tp: TopicPartition, offset: int) -> None:
        """Go on reading a partition there; a fetch or two that were under way come first."""
        thread = self.app.consumer._thread
        with suppress(IllegalStateError):
            await thread.call_thread(_seek, thread._consumer, self._to_broker(tp), offset)

    def _assignment(self) -> AbstractSet[TP]:
        try:
            assigned: AbstractSet[TP] = self.app.consumer.assignment()
        except ConsumerNotStarted:  # its thread is a moment behind us
            return frozenset()
        return assigned

    def _to_broker(self, tp: TopicPartition) -> TP:
        return TP(self._broker.topic(tp[0]), tp[1])

    def _from_broker(self, tp: Any) -> TopicPartition:
        return self._broker.table_name(tp.topic), tp.partition

    def _add_agent(self, names: Sequence[str]) -> None:
        self.app.topics.add(self.app.topic(*names, value_type=bytes, value_serializer="raw", acks=False))

        async def agent(fetches: Any) -> None:
            assert self._listener is not None
            async for fetched in fetches:
                for tp, records in fetched.items():
                    topic = self._broker.table_name(tp.topic)
                    await self._listener.arrived([InputRecord.of(topic, record) for record in records])

        self.app.agent(self.app.fetches, name="inputs")(agent)

    async def _assigned(self, sender: Any, assigned: set[TP], **_: Any) -> None:
        assert self._listener is not None
        self._paused = frozenset()
        self._listener.assigned(frozenset(tp.partition for tp in assigned))

    async def _revoked(self, sender: Any, revoked: set[TP], **_: Any) -> None:
        """Faust delivers kept partitions again from their commit, so that all of them are revoked."""
        assert self._listener is not None
        if revoked:
            await self._listener.revoked()


async def _seek(consumer: AIOKafkaConsumer, tp: TP, offset: int) -> None:
    """In the consumer's own thread: a fetch that is handed out meanwhile would move the position, too."""
    consumer.seek(tp, offset)


class _ConsumerThread(AIOKafkaConsumerThread):
    app: Any

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        read_in_this_way(
            consumer,
            fetch_max_wait_ms=self.app.kafka.fetch_max_wait_ms,  # Faust's is the embedded broker's latency
            isolation_level=self.app.kafka.isolation_level,
            assignor=self.app.partition_assignor,
        )
        return consumer


class _Consumer(Consumer):
    app: Any

    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """As Faust's own, which ends the process where a rebalance takes the partitions away meanwhile.

        There is nothing to seek then: an assignment begins at the commits by itself, and another one is on its way.
        """
        with suppress(IllegalStateError, AssertionError):  # the assertion of aiokafka: none is assigned
            await super().perform_seek()

    async def _drain_messages(self, fetcher: Any) -> None:
        """As Faust's own, but for what an event is."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                records, active = await self._wait_next_records(1.0)
                if not self.flow_active:
                    await self.perform_seek()  # what was fetched is fetched again
                elif ours := {tp: found for tp, found in (records or {}).items() if tp in (active or ())}:
                    await self._hand_on(ours)
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise

    async def _hand_on(self, fetched: Mapping[TP, Any]) -> None:
        """To the agent; where a rebalance throws away what waits for room, it is fetched again from the commits.

        Faust cancels the waiting then, and takes that for the end of what reads.
        """
        putting = asyncio.ensure_future(self.app.fetches.put(fetched))
        try:
            await self.wait_first(putting, self.suspend_flow.wait())
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or not putting.cancelled():
                raise


class _Transport(Transport):
    Consumer = _Consumer


class _App(faust.App):
    """Reads bytes, makes no topics of its own, opens no port, keeps no tables and makes no folder."""

    kafka: Broker
    partition_assignor: type[Any]

    @cached_property
    def fetches(self) -> Any:
        """What the consumer read, a fetch an event."""
        return self.channel(maxsize=_FETCHES_AHEAD)

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        """None: they would be for tables, stay empty, and be left behind by a worker that is killed."""


def _faust_app(group: str, broker: Broker, assignor: type[Any]) -> Any:
    app = _App(
        group,
        broker=[URL(f"kafka://{host}") for host in broker.bootstrap.split(",")],
        broker_credentials=credentials(broker.options),
        store="memory://",
        cache="memory://",
        web_enabled=False,
        autodiscover=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        reply_create_topic=False,
        table_standby_replicas=0,
        stream_wait_empty=False,
        stream_buffer_maxsize=_FETCHES_AHEAD,
        worker_redirect_stdouts=False,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=4 << 20,
        broker_max_poll_records=_MAX_FETCH_RECORDS,
        broker_session_timeout=broker.session_timeout_s,
        broker_heartbeat_interval=broker.session_timeout_s / 4,
        broker_commit_interval=_FAUST_COMMIT_INTERVAL_S,
        broker_request_timeout=max(_REQUEST_TIMEOUT_S, broker.session_timeout_s),  # Faust refuses a shorter one
    )
    app.kafka, app.partition_assignor = broker, assignor
    return app


def credentials(options: Mapping[str, Any]) -> Any:
    """Security settings of aiokafka's in Faust's form; None for plaintext. A client's certificate is in the context."""
    context, user = options.get("ssl_context"), options.get("sasl_plain_username")
    if user is not None:
        return SASLCredentials(
            username=user,
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return SSLCredentials(context=context) if context is not None else None
