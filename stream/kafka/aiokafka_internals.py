"""What is private to aiokafka and used all the same: the names stand here and nowhere else. Written against 0.14.0.

aiokafka offers no way to read a position without a call, to forbid the repetition of a produce request, to bound what
a fetch inflates to, or to change a consumer that Faust has made. `missing_names` names what another version lacks.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.consumer.subscription_state import (  # type: ignore[import-untyped]
    Assignment,
    SubscriptionState,
    TopicPartitionState,
)
from aiokafka.errors import KafkaConnectionError, RequestTimedOutError  # type: ignore[import-untyped]
from aiokafka.producer.sender import Sender, SendProduceReqHandler  # type: ignore[import-untyped]
from aiokafka.protocol import admin  # type: ignore[import-untyped]
from aiokafka.record.default_records import DefaultRecord  # type: ignore[import-untyped]

CONNECTION_LOG = "aiokafka.conn"  # at level DEBUG it quotes every request and response
DECODERS = ("gzip_decode", "snappy_decode", "lz4_decode", "zstd_decode")
_PROOFS = "SaslAuthenticate"  # requests and responses whose names begin so hold credentials
_RECORD_MODULES = ("default_records", "legacy_records", "_crecords.default_records", "_crecords.legacy_records")
_NAMES: tuple[tuple[Any, tuple[str, ...]], ...] = (  # those that its classes set in __init__ are looked for in its text
    (AIOKafkaConsumer, ("_subscription", "_fetch_max_wait_ms", "_isolation_level", "_partition_assignment_strategy")),
    (SubscriptionState, ("subscription",)),
    (Assignment, ("state_value",)),
    (TopicPartitionState, ("has_valid_position", "position")),
    (AIOKafkaProducer, ("_sender",)),
    (Sender, ("_send_produce_req", "_in_flight", "_muted_partitions")),
    (SendProduceReqHandler, ("do", "_can_retry")),
    (fetcher, ("PartitionRecords",)),
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


def wrap_batches(wrapped: Callable[[Any, Any], Any]) -> None:
    """Let every consumer of this process read ``wrapped(tp, batches)`` where it has fetched ``batches``."""
    unwrapped = fetcher.PartitionRecords

    def partition_records(tp: Any, batches: Any, *settings: Any) -> Any:
        return unwrapped(tp, wrapped(tp, batches), *settings)

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
