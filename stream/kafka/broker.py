"""The broker as the workers see it: where it is, what it can do, the names of its topics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, UnknownError, UnsupportedVersionError  # type: ignore[import-untyped]

from stream.kafka.admin import BrokerUnreachableError, topic_settings
from stream.kafka.bounded_fetch import bound_fetches
from stream.kafka.client_options import kafka_client_options
from stream.kafka.topic_settings import record_limit
from stream.servers.settings import StreamSettings

MAX_RECORD_BYTES = 8 << 20  # the table's limit for columnar topics
REQUEST_ROOM_BYTES = 64 << 10  # headers of the batch around one record of the greatest size
_BATCH_BYTES = 16 << 10  # aiokafka's own choice; a larger record has a batch of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker that answered once.

    ``long_poll`` is False for the embedded broker: it neither wakes a waiting fetch when a record arrives, nor knows
    idempotent producers; it also joins groups in half the session timeout. ``record_limits`` says by topic of the table
    how large a record may be by its settings; a topic that is not among them takes `MAX_RECORD_BYTES`.
    """

    bootstrap: str
    prefix: str
    partitions: int
    idempotent: bool
    given_session_timeout_s: float | None = None
    record_limits: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fetch_max_wait_ms(self) -> int:
        """How long a fetch may wait for records. Without long polling this is the latency of a record."""
        return 500 if self.idempotent else 20

    @property
    def isolation_level(self) -> str:
        """What a consumer may see: where there are transactions, only what was committed."""
        return "read_committed" if self.idempotent else "read_uncommitted"

    @property
    def session_timeout_s(self) -> float:
        """After how long a silent worker has left its group."""
        if self.given_session_timeout_s is not None:
            return self.given_session_timeout_s
        return 10.0 if self.idempotent else 2.0

    def consumer(self, **options: Any) -> AIOKafkaConsumer:
        """A consumer to be started, outside of any group and without commits of its own but for ``options``."""
        usual = {
            "bootstrap_servers": self.bootstrap,
            "group_id": None,
            "enable_auto_commit": False,
            "fetch_max_wait_ms": self.fetch_max_wait_ms,
            "isolation_level": self.isolation_level,
        }
        return AIOKafkaConsumer(**{**usual, **self.options, **options})

    def producer(self, **options: Any) -> AIOKafkaProducer:
        """A producer to be started whose writes are acknowledged by all replicas, but for ``options``."""
        usual = {
            "bootstrap_servers": self.bootstrap,
            "acks": "all",
            "linger_ms": 0,  # a record waits for nobody: what rides together was put together before
            "max_request_size": MAX_RECORD_BYTES + REQUEST_ROOM_BYTES,
            "max_batch_size": min(_BATCH_BYTES, *self.record_limits.values(), MAX_RECORD_BYTES),
        }
        return AIOKafkaProducer(**{**usual, **self.options, **options})

    def record_bytes(self, topic: str) -> int:
        """How large a record of a topic of the table may be, at most `MAX_RECORD_BYTES`: what is larger is refused."""
        return self.record_limits.get(topic, MAX_RECORD_BYTES)

    def group(self, agent: str) -> str:
        """The consumer group of an agent."""
        return f"{self.prefix}millstream-{agent}"

    def topic(self, name: str) -> str:
        """The name on the broker of a topic of the table."""
        return self.prefix + name

    def table_name(self, topic: str) -> str:
        """The name in the table of a topic on the broker."""
        return topic.removeprefix(self.prefix)


async def find_broker(settings: StreamSettings) -> Broker:
    """Ask the broker of the settings what it and its topics can take, and bound what may come from it.

    Raises BrokerUnreachableError.
    """
    bound_fetches()
    asked = Broker(
        bootstrap=settings.kafka_bootstrap_servers or "",
        prefix=settings.topic_prefix,
        partitions=settings.partitions,
        idempotent=False,
        given_session_timeout_s=settings.kafka_session_timeout_s,
        options=kafka_client_options(settings),
    )
    idempotent = await _gives_producer_ids(asked)
    found = await topic_settings(asked.bootstrap, settings.topics(), asked.options)
    limits = {asked.table_name(name): record_limit(these, MAX_RECORD_BYTES) for name, these in found.items() if these}
    return replace(asked, idempotent=idempotent, record_limits=limits)


async def _gives_producer_ids(broker: Broker) -> bool:
    """Whether an idempotent producer can start: the embedded broker lists the request but fails it."""
    producer = broker.producer(enable_idempotence=True)
    sender_log = logging.getLogger("aiokafka.producer.sender")
    level = sender_log.level
    sender_log.setLevel(logging.CRITICAL)  # it calls the expected refusal an error
    try:
        await producer.start()
    except (UnknownError, UnsupportedVersionError):
        return False
    except (KafkaError, OSError) as error:
        raise BrokerUnreachableError(
            f"no Kafka broker answered at {broker.bootstrap} ({type(error).__name__}: {error}): the worker can read "
            "nothing. Check KAFKA_BOOTSTRAP_SERVERS, KAFKA_SECURITY_PROTOCOL with its user or certificates, "
            "and that the broker runs."
        ) from error
    finally:
        sender_log.setLevel(level)
        await producer.stop()
    return True
