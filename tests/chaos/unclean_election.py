"""The request that lets a replica lead that is not in sync: what only the old leader held is gone then, for good."""

from __future__ import annotations

from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import for_code  # type: ignore[import-untyped]
from aiokafka.protocol.api import Request, RequestStruct, Response  # type: ignore[import-untyped]
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String  # type: ignore[import-untyped]

from stream.embedded.process import LOOPBACK
from tests.chaos.kafka_cluster import KafkaNode

_API_KEY = 43
_VERSION = 1  # of Kafka 2.4 to 4
_UNCLEAN = 1
_TIMEOUT_MS = 10_000


class _Response(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = _API_KEY, _VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                ("partitions", Array(("partition", Int32), ("error_code", Int16), ("message", String("utf-8")))),
            ),
        ),
    )


class _RequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION = _API_KEY, _VERSION
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("election_type", Int8),
        ("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
        ("timeout_ms", Int32),
    )


class _Request(Request[_RequestStruct]):  # type: ignore[misc]
    API_KEY = _API_KEY

    def __init__(self, topic: str, partition: int) -> None:
        self._topics = [(topic, [partition])]

    def build(self, request_struct_class: type[_RequestStruct]) -> _RequestStruct:
        return request_struct_class(_UNCLEAN, self._topics, _TIMEOUT_MS)


async def elect_uncleanly(node: KafkaNode, topic: str, partition: int) -> None:
    """Ask a node to let any replica that is there lead a partition without a leader.

    Raises KafkaError where there is none.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=f"{LOOPBACK}:{node.direct}")
    try:
        await admin.start()
        answer = await admin._send_request(_Request(topic, partition), node.number)
    finally:
        await admin.close()
    for code in (answer.error_code, *(code for _, found in answer.topics for _, code, _ in found)):
        if code:
            raise for_code(code)(f"of {topic}[{partition}]")
