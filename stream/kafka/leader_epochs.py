"""Where an epoch of a partition's leader ends in its log: the request that aiokafka does not know.

Every record is of the epoch in which its leader took it, and a leader that takes over with less than the one before had
begins a new epoch at its own end. So a log still holds all that was read of it up to the end of the epoch of the record
read last (KIP-101, KIP-320).
"""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    IncompatibleBrokerVersion,
    KafkaError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response  # type: ignore[import-untyped]
from aiokafka.protocol.types import Array, Int16, Int32, Int64, Schema, String  # type: ignore[import-untyped]

from stream.kafka.aiokafka_internals import ask_leader

UNKNOWN = -1  # the log was written in no such epoch
_API_KEY = 23
_VERSION = 3  # of Kafka 2.3 to 4
_ANY_CONSUMER = -1
_PATIENCE_S = 30.0  # a partition that lost its leader has another one within seconds
_RETRY_S = 0.1


class _Response(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = _API_KEY, _VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("error_code", Int16), ("partition", Int32), ("leader_epoch", Int32), ("end_offset", Int64)),
                ),
            ),
        ),
    )


class _RequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION = _API_KEY, _VERSION
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("replica_id", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                ("partitions", Array(("partition", Int32), ("current_leader_epoch", Int32), ("leader_epoch", Int32))),
            ),
        ),
    )


class _Request(Request[_RequestStruct]):  # type: ignore[misc]
    API_KEY = _API_KEY

    def __init__(self, tp: TopicPartition, epoch: int) -> None:
        self._topics = [(tp.topic, [(tp.partition, -1, epoch)])]

    def build(self, request_struct_class: type[_RequestStruct]) -> _RequestStruct:
        return request_struct_class(_ANY_CONSUMER, self._topics)


async def epoch_end(consumer: AIOKafkaConsumer, tp: TopicPartition, epoch: int) -> int | None:
    """The offset behind the last record of ``epoch`` and those before it, `UNKNOWN` for an epoch later than the log's.

    None where the broker does not answer such questions. ``consumer`` must be started. Raises KafkaError when the
    partition has no leader for half a minute.
    """
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            answer = await ask_leader(consumer, tp, _Request(tp, epoch))
            ((_, ((error, _, _, end),)),) = answer.topics
            if error:
                raise for_code(error)(f"of {tp.topic}[{tp.partition}]")
        except (IncompatibleBrokerVersion, NotImplementedError):
            return None
        except KafkaError as error:
            if not error.retriable or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_RETRY_S)
        else:
            return int(end)
