"""How what belongs together reaches the log: records and the offsets that they were made of, all of them or none.

On Apache Kafka every owner (of a partition of the join, of the model) has a transactional producer under its name. Who
opens it fences its former owner: a worker that was paused, cut off or just slow can no longer write, and what it
had begun is rolled back. The embedded broker has no transactions: there records are written one by one, offsets are
committed later, and a restart finds in the topics what was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka import TopicPartition as BrokerPartition
from aiokafka.errors import (  # type: ignore[import-untyped]
    InvalidProducerEpoch,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    ProducerFenced,
    RecordListTooLargeError,
    UnknownError,
)
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from stream.kafka.aiokafka_internals import look_on_for_coordinators, never_retry
from stream.kafka.broker import Broker
from stream.kafka.input_record import TopicPartition

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
# aiokafka does not know INVALID_RECORD: a record of a compacted topic without a key is an UnknownError to it.
_REFUSALS = (*_TOO_LARGE, InvalidTimestampError, PolicyViolationError, UnknownError)

TRANSACTION_TIMEOUT_MS = 15_000  # how long a worker that stops in the middle can hold readers back, unless it is fenced


class FencedError(RuntimeError):
    """Another worker has taken over; nothing of what was to be written was."""


class RecordRefusedError(RuntimeError):
    """The broker does not take a record as it is; a restart makes the same one, and would end the same way."""

    def __init__(self, record: Outgoing, topic: str, limit: int, error: KafkaError) -> None:
        remedy = (
            f"Raise max.message.bytes of {topic} above {len(record.value)} and what a batch takes beside it "
            f"(kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config max.message.bytes=…)."
            if isinstance(error, _TOO_LARGE)
            else "Compare the topic with what is needed: python -m stream topics --check; the broker's log says more."
        )
        super().__init__(
            f"{topic}: a record of {len(record.value)} bytes was refused ({type(error).__name__}: {error}); its "
            f"settings take {limit}. This step ends here, and after every restart again: the same records come again. "
            f"{remedy}"
        )


class Outgoing(NamedTuple):
    """A record for a topic by its name in the table."""

    topic: str
    value: bytes
    key: bytes | None = None
    partition: int | None = None


class Commits(NamedTuple):
    """Offsets of a consumer group, all with the same metadata."""

    group: str
    offsets: Mapping[TopicPartition, int]
    metadata: str


class LogWriter(Protocol):
    """Writes of one owner, in order."""

    async def write(self, records: Sequence[Outgoing], commits: Commits | None = None) -> list[int]:
        """Store records; their offsets. Raises FencedError, KafkaError."""
        ...

    async def close(self) -> None:
        """Give up the ownership."""
        ...


async def open_writer(broker: Broker, owner: str) -> LogWriter:
    """The writer of an owner; the only one from now on, where the broker has transactions."""
    writer: TransactionalWriter | PlainWriter
    writer = TransactionalWriter(broker, owner) if broker.idempotent else PlainWriter(broker)
    await writer.start()
    return writer


@asynccontextmanager
async def shared_writer(broker: Broker) -> AsyncIterator[LogWriter]:
    """A writer that fences nobody, for records of which a second one changes nothing: a failed send is repeated.

    Idempotent wherever the broker can be. A send that fails for good raises: who writes must stop, since records that
    the log lacks would be lost.
    """
    writer = PlainWriter(broker, repeats=True)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.close()


class TransactionalWriter:
    """A write is one transaction, commits included."""

    def __init__(self, broker: Broker, owner: str) -> None:
        self._broker = broker
        self._owner = owner
        self._one_at_a_time = asyncio.Lock()
        self._producer = broker.producer(transactional_id=owner, transaction_timeout_ms=TRANSACTION_TIMEOUT_MS)
        look_on_for_coordinators(self._producer)

    async def start(self) -> None:
        """Fence the former writer; what it had not committed is rolled back."""
        await self._producer.start()

    async def write(self, records: Sequence[Outgoing], commits: Commits | None = None) -> list[int]:
        """Store records; their offsets."""
        sends: list[asyncio.Future[Any]] = []
        try:
            async with self._one_at_a_time, self._producer.transaction():
                for record in records:
                    sends.append(await _send(self._producer, self._broker, record))  # noqa: PERF401 - see below
                if commits is not None:
                    await self._producer.send_offsets_to_transaction(self._named(commits), commits.group)
                metadata = await _stored(self._broker, records, sends)
        except (ProducerFenced, InvalidProducerEpoch) as error:
            await asyncio.gather(*sends, return_exceptions=True)  # they failed for the same reason
            raise FencedError(
                f"another worker writes as {self._owner} now ({error!r}). Nothing of this step was written; this "
                "worker stops and resumes from the log. It was silent for longer than its session: if that comes "
                "often, raise KAFKA_SESSION_TIMEOUT_S."
            ) from error
        return [int(one.offset) for one in metadata]

    async def close(self) -> None:
        """Disconnect."""
        await self._producer.stop()

    def _named(self, commits: Commits) -> dict[BrokerPartition, OffsetAndMetadata]:
        return {
            BrokerPartition(self._broker.topic(topic), partition): OffsetAndMetadata(offset, commits.metadata)
            for (topic, partition), offset in commits.offsets.items()
        }


class PlainWriter:
    """Records one by one, each once or not at all: a send whose outcome is not known is not repeated.

    Without idempotence a repeated send may store a record twice. So the worker ends, and its next life looks what is
    there. Commits are left to the consumer.

    Parameters
    ----------
    repeats : repeat such sends all the same.
    """

    def __init__(self, broker: Broker, *, repeats: bool = False) -> None:
        self._broker = broker
        self._repeats = repeats
        self._producer = broker.producer(enable_idempotence=broker.idempotent)

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()
        if not self._repeats:
            never_retry(self._producer)

    async def write(self, records: Sequence[Outgoing], commits: Commits | None = None) -> list[int]:
        """Store records; their offsets. Those of a topic are all stored before those of the next are sent."""
        offsets: list[int] = []
        for _, run in groupby(records, key=lambda record: record.topic):
            sent = [*run]
            sends = [await _send(self._producer, self._broker, record) for record in sent]
            offsets += [int(one.offset) for one in await _stored(self._broker, sent, sends)]
        return offsets

    async def close(self) -> None:
        """Disconnect."""
        await self._producer.stop()


async def _send(producer: AIOKafkaProducer, broker: Broker, record: Outgoing) -> asyncio.Future[Any]:
    try:
        sent: asyncio.Future[Any] = await producer.send(
            broker.topic(record.topic), record.value, key=record.key, partition=record.partition
        )
    except MessageSizeTooLargeError as error:  # larger than any topic of ours takes
        raise _refused(broker, record, error) from error
    return sent


async def _stored(broker: Broker, records: Sequence[Outgoing], sends: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """Where the records are, once all are stored. Raises RecordRefusedError, KafkaError."""
    try:
        return await asyncio.gather(*sends)
    except _REFUSALS as error:
        await asyncio.gather(*sends, return_exceptions=True)
        refused = next(one for one, sent in zip(records, sends, strict=True) if sent.exception() is not None)
        raise _refused(broker, refused, error) from error


def _refused(broker: Broker, record: Outgoing, error: KafkaError) -> RecordRefusedError:
    return RecordRefusedError(record, broker.topic(record.topic), broker.record_bytes(record.topic), error)
