"""What is private to aiokafka and used all the same: the names stand here and nowhere else. Written against 0.14.0.

aiokafka offers no way to read a position without a call, to forbid the repetition of a produce request, to bound what
a fetch inflates to, to know the leader epoch of a record, or to change a consumer that Faust has made. `missing_names`
names what another version lacks. What is asked of the broker beside aiokafka's own requests: `leader_epochs.py`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.consumer.subscription_state import (  # type: ignore[import-untyped]
    Assignment,
    SubscriptionState,
    TopicPartitionState,
)
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    RequestTimedOutError,
)
from aiokafka.producer.sender import Sender, SendProduceReqHandler  # type: ignore[import-untyped]
from aiokafka.protocol import admin  # type: ignore[import-untyped]
from aiokafka.record.default_records import DefaultRecord  # type: ignore[import-untyped]
from aiokafka.structs import ConsumerRecord  # type: ignore[import-untyped]

CONNECTION_LOG = "aiokafka.conn"  # at level DEBUG it quotes every request and response
DECODERS = ("gzip_decode", "snappy_decode", "lz4_decode", "zstd_decode")
_RETRY_S = 0.1
_PROOFS = "SaslAuthenticate"  # requests and responses whose names begin so hold credentials
_RECORD_MODULES = ("default_records", "legacy_records", "_crecords.default_records", "_crecords.legacy_records")
_NAMES: tuple[tuple[Any, tuple[str, ...]], ...] = (  # those that its classes set in __init__ are looked for in its text
    (AIOKafkaConsumer, ("_subscription", "_fetch_max_wait_ms", "_isolation_level", "_partition_assignment_strategy")),
    (AIOKafkaConsumer, ("_client",)),
    (AIOKafkaClient, ("cluster", "send", "force_metadata_update", "_wait_on_metadata", "coordinator_lookup")),
    (SubscriptionState, ("subscription",)),
    (Assignment, ("state_value",)),
    (TopicPartitionState, ("has_valid_position", "position")),
    (AIOKafkaAdminClient, ("_client", "_request_timeout_ms", "_send_request", "_send_to_controller")),
    (AIOKafkaProducer, ("_sender", "client")),
    (Sender, ("_send_produce_req", "_in_flight", "_muted_partitions")),
    (SendProduceReqHandler, ("do", "_can_retry")),
    (fetcher, ("PartitionRecords", "MemoryRecords")),
    (fetcher.PartitionRecords, ("_consumer_record", "_records", "_key_deserializer", "_value_deserializer")),
    (DefaultRecord, ("offset", "timestamp_type")),
)


def missing_names() -> list[str]:
    """The names that the installed aiokafka lacks; none when all that is done here still works."""
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in _NAMES
        for name in names
        if not hasattr(owner, name) and f"self.{name}" not in inspect.getsource(owner)
    ]
    modules = [importlib.import_module(f"aiokafka.record.{name}") for name in _RECORD_MODULES]
    missing += [name for name in DECODERS if not any(hasattr(module, name) for module in modules)]
    if not any(name.startswith(_PROOFS) for name in vars(admin)):
        missing.append(f"aiokafka.protocol.admin.{_PROOFS}*")
    return missing


def unread_records(consumer: AIOKafkaConsumer, partitions: Iterable[Any]) -> Mapping[Any, int]:
    """Offsets between what was handed out and the end, by the last fetch; nothing for a partition not fetched from yet.

    What cannot be read (transaction markers, records that were rolled back) counts until the consumer has passed it.
    """
    assignment = consumer._subscription.subscription.assignment if consumer._subscription.subscription else None
    unread = {}
    for tp in partitions:
        end = consumer.highwater(tp)
        state = assignment.state_value(tp) if assignment is not None else None
        if end is not None and state is not None and state.has_valid_position:
            unread[tp] = max(0, end - state.position)
    return unread


async def ask_leader(consumer: AIOKafkaConsumer, tp: Any, request: Any) -> Any:
    """What the leader of a partition answers to a request of the protocol. Raises KafkaError; ask again then."""
    client = consumer._client
    await client._wait_on_metadata(tp.topic)
    leader = client.cluster.leader_for_partition(tp)
    try:
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(f"{tp.topic}[{tp.partition}] has no leader")
        return await client.send(leader, request)
    except KafkaError:
        await client.force_metadata_update()
        raise


class PatientAdmin(AIOKafkaAdminClient):  # type: ignore[misc]
    """Asks another broker where the one that aiokafka draws, of all that the cluster has or had, is away."""

    async def _send_request(self, request: Any, node_id: int | None = None) -> Any:
        if node_id is not None:
            return await super()._send_request(request, node_id)
        return await self._until_sent(lambda: super(PatientAdmin, self)._send_request(request))

    async def _send_to_controller(self, request: Any) -> Any:
        return await self._until_sent(lambda: super(PatientAdmin, self)._send_to_controller(request))

    async def _until_sent(self, send: Callable[[], Awaitable[Any]]) -> Any:
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + self._request_timeout_ms / 1000
        while True:
            try:
                return await send()
            except (KafkaConnectionError, NodeNotReadyError):
                if clock() > deadline_s:
                    raise
                await self._client.force_metadata_update()
                await asyncio.sleep(_RETRY_S)


def read_in_this_way(
    consumer: AIOKafkaConsumer, *, fetch_max_wait_ms: int, isolation_level: str, assignor: type[Any]
) -> None:
    """Change a consumer that was made and not started yet."""
    consumer._fetch_max_wait_ms = fetch_max_wait_ms
    consumer._isolation_level = isolation_level
    consumer._partition_assignment_strategy = (assignor,)


def holds_a_proof(message: object) -> bool:
    """Whether a request or response says who the client is: its password, or what it derived from it."""
    return type(message).__name__.startswith(_PROOFS)


# ------------------------------------------------------------------------------------------------------------- fetching


def replace_decoders(decoders: Mapping[str, Callable[[bytes], bytes]]) -> None:
    """Let records be inflated by these functions, by their names in `DECODERS`."""
    for module in (importlib.import_module(f"aiokafka.record.{name}") for name in _RECORD_MODULES):
        for name, decoder in decoders.items():
            if hasattr(module, name):
                setattr(module, name, decoder)


@dataclass
class LoggedRecord(ConsumerRecord):  # type: ignore[misc]
    """A record with the leader epoch of its batch, -1 where the broker does not say."""

    leader_epoch: int = -1


class EpochBatches:
    """The batches of one fetch in their order; ``leader_epoch`` is that of the batch that was given last."""

    _HEAD = struct.Struct(">qiib")  # base offset, length of what follows it, leader epoch, magic
    _LENGTH_END = 12
    _FIRST_MAGIC = 2  # older formats have no epoch

    def __init__(self, batches: Any, fetched: bytes) -> None:
        self._batches = batches
        self._fetched = fetched
        self._at = 0
        self.leader_epoch = -1

    def size_in_bytes(self) -> int:
        """Of the fetch."""
        return int(self._batches.size_in_bytes())

    def has_next(self) -> bool:
        """Whether there is another whole batch."""
        return bool(self._batches.has_next())

    def next_batch(self) -> Any:
        """The next one."""
        _, length, epoch, magic = self._HEAD.unpack_from(self._fetched, self._at)
        self.leader_epoch = epoch if magic >= self._FIRST_MAGIC else -1
        self._at += self._LENGTH_END + length
        return self._batches.next_batch()


class _EpochRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """As aiokafka's own, but the records of consumers that deserialize nothing, as ours, know their leader epoch."""

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        if self._key_deserializer or self._value_deserializer:
            return super()._consumer_record(tp, record)
        key, value = record.key, record.value
        return LoggedRecord(
            tp.topic,
            tp.partition,
            record.offset,
            record.timestamp,
            record.timestamp_type,
            key,
            value,
            None,
            -1 if key is None else len(key),
            -1 if value is None else len(value),
            tuple(record.headers),
            self._records.leader_epoch,
        )


def wrap_batches(wrapped: Callable[[Any, EpochBatches], Any]) -> None:
    """Let every consumer of this process read ``wrapped(tp, batches)`` where it has fetched ``batches``.

    What is returned has the ``leader_epoch`` of its last batch; the consumer's records are `LoggedRecord`.
    """
    unwrapped = fetcher.MemoryRecords

    def memory_records(fetched: bytes) -> EpochBatches:
        return EpochBatches(unwrapped(fetched), fetched)

    def partition_records(tp: Any, batches: EpochBatches, *settings: Any) -> Any:
        return _EpochRecords(tp, wrapped(tp, batches), *settings)

    fetcher.MemoryRecords = memory_records
    fetcher.PartitionRecords = partition_records


def record_in_place_of(batch: Any, value: bytes) -> Any:
    """A record with the offset and the time of a batch."""
    return DefaultRecord(batch.base_offset, batch.max_timestamp, batch.timestamp_type, None, value, [])


# -------------------------------------------------------------------------------------------------------------- sending


class _NeverRepeated(SendProduceReqHandler):  # type: ignore[misc]
    """A produce request that is sent again only when the broker cannot have stored it."""

    def _can_retry(self, error: BaseException, batch: Any) -> bool:
        unknown = isinstance(error, KafkaConnectionError | RequestTimedOutError)
        return not unknown and bool(super()._can_retry(error, batch))


def never_retry(producer: AIOKafkaProducer) -> None:
    """Let a started producer fail where it would repeat a request whose outcome it does not know."""
    sender = producer._sender

    async def send(node_id: int, batches: Mapping[Any, Any]) -> None:
        await _NeverRepeated(sender, batches).do(node_id)
        sender._in_flight.remove(node_id)
        for tp in batches:
            sender._muted_partitions.remove(tp)

    sender._send_produce_req = send


def look_on_for_coordinators(producer: AIOKafkaProducer) -> None:
    """Let a producer that is not started yet ask again where the broker that it asks for a coordinator goes away.

    aiokafka asks again after any other failure that passes, and ends the producer, in the middle of a transaction,
    after a connection that closes.
    """
    lookup = producer.client.coordinator_lookup

    async def patient_lookup(kind: int, key: str) -> int:
        try:
            return int(await lookup(kind, key))
        except KafkaConnectionError as error:
            raise NodeNotReadyError(str(error)) from error

    producer.client.coordinator_lookup = patient_lookup
