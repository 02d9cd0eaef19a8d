"""The broker and the Redis of a worker: given, or embedded ones that end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError

from stream.embedded.broker import EmbeddedBroker
from stream.embedded.process import ServerStartError
from stream.embedded.redis import EmbeddedRedis, ping_fault
from stream.servers.redis_packing import with_fast_packing
from stream.servers.settings import StreamSettings, redis_client_options, without_password

REDIS_TIMEOUT_S = 5.0
"""How long an answer of Redis may take: a host that is gone, or a firewall that forgot, never says that it is."""

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def servers(settings: StreamSettings) -> AsyncIterator[StreamSettings]:
    """The given broker and Redis, or embedded ones whose addresses are said on stderr."""
    async with AsyncExitStack() as stack:
        bootstrap, redis_url = settings.kafka_bootstrap_servers, settings.redis_url
        if bootstrap is None:
            bootstrap = (await stack.enter_async_context(EmbeddedBroker())).bootstrap
            _log.info("embedded broker started", KAFKA_BOOTSTRAP_SERVERS=bootstrap)
        if redis_url is None:
            redis_url = (await stack.enter_async_context(EmbeddedRedis())).url
            _log.info("embedded Redis started", REDIS_URL=redis_url)
        elif (fault := await ping_fault(redis_url, redis_client_options(settings))) is not None:
            _go_on_while_it_loads(without_password(redis_url), fault)
        yield settings.model_copy(update={"kafka_bootstrap_servers": bootstrap, "redis_url": redis_url})


def _go_on_while_it_loads(url: str, fault: Exception) -> None:
    """Say that Redis is there and reads its data: agents ask again, and the log holds what it lacks meanwhile.

    Raises ServerStartError for any other fault.
    """
    if isinstance(fault, BusyLoadingError):
        _log.warning("Redis loads its data; session features and conversions wait until it has", url=url)
        return
    raise ServerStartError(
        f"no Redis answered at {url} ({type(fault).__name__}: {fault}): session features could be neither read nor "
        "kept. Check REDIS_URL with its user, and that it runs, or unset it to use the embedded one."
    ) from fault


def redis_client(stack: AsyncExitStack, settings: StreamSettings) -> Redis:
    """A client of the Redis of the settings, closed by ``stack``.

    It fails at once, and after `REDIS_TIMEOUT_S` of silence: the caller knows what to do without an answer, and when to
    ask again (`stream.servers.circuit_breaker`).
    """
    client = with_fast_packing(
        Redis.from_url(
            settings.redis_url or "",
            retry=Retry(NoBackoff(), 0),
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            **redis_client_options(settings),
        )
    )
    stack.push_async_callback(client.aclose)
    return client
