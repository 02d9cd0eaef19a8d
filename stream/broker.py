"""The broker as the workers see it: where it is, what it can do, the names of its topics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.protocol.admin import ApiVersionRequest  # type: ignore[import-untyped]

from stream.admin import BrokerUnreachableError
from stream.settings import StreamSettings, kafka_client_options

_INIT_PRODUCER_ID = 22  # the request with which idempotent and transactional producers begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker that answered once.

    ``long_poll`` is False for the embedded broker: it neither wakes a waiting fetch when a record arrives, nor knows
    idempotent producers; it also joins groups in half the session timeout.
    """

    bootstrap: str
    prefix: str
    partitions: int
    idempotent: bool
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fetch_max_wait_ms(self) -> int:
        """How long a fetch may wait for records. Without long polling this is the latency of a record."""
        return 500 if self.idempotent else 20

    @property
    def session_timeout_s(self) -> float:
        """After how long a silent worker has left its group."""
        return 10.0 if self.idempotent else 2.0

    def topic(self, name: str) -> str:
        """The name on the broker of a topic of the table."""
        return self.prefix + name

    def table_name(self, topic: str) -> str:
        """The name in the table of a topic on the broker."""
        return topic.removeprefix(self.prefix)


async def find_broker(settings: StreamSettings) -> Broker:
    """Ask the broker of the settings what it can do. Raises BrokerUnreachableError."""
    bootstrap = settings.kafka_bootstrap_servers or ""
    options = kafka_client_options(settings)
    client = AIOKafkaClient(bootstrap_servers=bootstrap, **options)
    try:
        await client.bootstrap()
        answer = await client.send(client.get_random_node(), ApiVersionRequest())
    except (KafkaError, OSError) as error:
        raise BrokerUnreachableError(
            f"no Kafka broker answered at {bootstrap} ({type(error).__name__}: {error}): the worker can read nothing. "
            "Check KAFKA_BOOTSTRAP_SERVERS and that the broker runs."
        ) from error
    finally:
        await client.close()
    known = {api_key for api_key, *_ in answer.api_versions}
    return Broker(
        bootstrap=bootstrap,
        prefix=settings.topic_prefix,
        partitions=settings.partitions,
        idempotent=_INIT_PRODUCER_ID in known,
        options=options,
    )
