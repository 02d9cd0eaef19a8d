"""Session states from Redis: the user's own in one round trip a call, shared counters from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from learners.features.encode import EncodedIds, Encoder
from learners.features.session_state import COUNTER, USER, SessionView
from serving.metrics import ServingMetrics
from serving.tasks import begin, end
from stream.servers.circuit_breaker import CircuitBreaker
from stream.servers.redis_packing import with_fast_packing
from stream.servers.settings import without_password
from stream.sessions.shared_feed import SharedCounterFeed
from stream.sessions.store import RedisSessionStore

_MIN_REFRESH_PAUSE_S = 0.05  # in a fast replay a second of the log is less than a millisecond


class SessionFeatures:
    """Reads what requests need to know of the past.

    A store that does not answer costs features, never answers: requests are then scored as those of users never seen,
    counted in ``millstream_feature_read_failures_total``, and the store is left alone for ``retry_after_s``.

    Parameters
    ----------
    redis_options : security settings, as of `redis_client_options`.
    refresh_s : how old shared counters may become, on the stream's clock.
    event_time : refresh by the event times of requests (a replay), not by the wall clock.
    timeout_s : how long a call may wait for the store.
    """

    def __init__(
        self,
        redis_url: str,
        encoder: Encoder,
        partitions: int,
        metrics: ServingMetrics,
        *,
        redis_options: Mapping[str, Any] | None = None,
        refresh_s: float = 1.0,
        event_time: bool = False,
        timeout_s: float = 0.5,
        retry_after_s: float = 1.0,
    ) -> None:
        self._encoder = encoder
        self._spec = encoder.spec
        self._metrics = metrics
        self._refresh_s = refresh_s
        self._event_time = event_time
        self.redis: Redis = with_fast_packing(
            Redis.from_url(
                redis_url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                **(redis_options or {}),
            )
        )
        self._store = RedisSessionStore(self.redis, encoder.spec, partitions)
        self._feed = SharedCounterFeed(self._store)
        self._newest_ms = 0
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._breaker = CircuitBreaker(
            f"session store at {without_password(redis_url)}",
            retry_after_s=retry_after_s,
            meanwhile="requests are scored without session features",
        )

    async def start(self) -> None:
        """Load the shared counters once, then keep them up to date in the background."""
        await self._refresh()
        self._task = begin(self._keep_up_to_date(), "refresh shared counters")

    async def stop(self) -> None:
        """Stop refreshing and disconnect."""
        if self._task is not None:
            await end(self._task)
        await self.redis.aclose()

    @property
    def ended(self) -> bool:
        """Whether the task that refreshes shared counters has died."""
        return self._task is not None and self._task.done()

    @property
    def failing(self) -> bool:
        """Whether the store has not answered since it failed."""
        return self._breaker.is_failing

    async def view(self, ids: EncodedIds) -> SessionView:
        """The states that these requests read; empty ones when the store does not answer."""
        if self._event_time:
            self._newest_ms = max(self._newest_ms, int(ids.ts_ms.max(initial=0)))
            self._due.set()
        if self._breaker.is_open:
            self._metrics.feature_read_failures.inc()
            return self.empty(ids)
        try:
            view = await self._store.read(self._encoder, ids, self._feed.counters)
        except (RedisError, OSError) as error:
            self._breaker.record_failure(error)
            self._metrics.feature_read_failures.inc()
            return self.empty(ids)
        self._breaker.record_success()
        return view

    def empty(self, ids: EncodedIds) -> SessionView:
        """What is known of users never seen; the shared counters in memory stay in use."""
        request_keys, ad_keys = self._encoder.counter_keys(ids)
        own_request = [self._spec.own(counter) for counter in self._spec.request_counters]
        own_ad = [self._spec.own(counter) for counter in self._spec.ad_counters]
        request, ad = self._feed.counters.sums(request_keys), self._feed.counters.sums(ad_keys)
        request[:, own_request] = np.zeros((), COUNTER)
        ad[:, own_ad] = np.zeros((), COUNTER)
        return SessionView(np.zeros(len(ids.user_key), USER), request, ad)

    async def _keep_up_to_date(self) -> None:
        refreshed_ms = self._newest_ms
        while True:
            if not self._event_time:
                await asyncio.sleep(self._refresh_s)
            else:
                await asyncio.sleep(_MIN_REFRESH_PAUSE_S)
                while self._newest_ms < refreshed_ms + self._refresh_s * 1000:
                    self._due.clear()
                    await self._due.wait()
                refreshed_ms = self._newest_ms
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            await self._feed.refresh()
            self._breaker.record_success()
        except (RedisError, OSError) as error:
            self._breaker.record_failure(error)
