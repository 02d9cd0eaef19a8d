"""Clicks in Redis for as long as they may convert: one atomic call writes a batch, one round trip finds some.

Like the session state it is a fold of the examples topic, behind a fence: the first examples offset of a partition that
it does not hold. Keys are ``millstream:<spec hash>:{<partition>}:click:<impression id>`` (hex).
"""

from __future__ import annotations

from collections.abc import Awaitable
from importlib import resources
from typing import cast

import numpy as np
import structlog
from numpy.typing import NDArray
from redis.asyncio import Redis

from learners.features.spec import FeatureSpec
from stream.clicks.stored_clicks import StoredClicks, clicks_in, packed, packed_times, unpacked
from stream.records.examples import ExampleRows
from stream.servers.fences import DamagedStoreError, clear, damage_is_said, fence_of

_log = structlog.get_logger(__name__)

_GRACE_S = 7 * 86_400  # beyond the horizon: a worker may lag behind by as long as the inputs are kept


class RedisClickStore:
    """The clicks of one feature spec. ``redis`` must answer bytes (``decode_responses=False``)."""

    def __init__(self, redis: Redis, spec: FeatureSpec, conversion_horizon_s: float) -> None:
        self._redis = redis
        self._base = f"millstream:{spec.hash}:"
        self._widths = spec.id_columns, spec.dense_inputs
        self._ttl_s = str(round(conversion_horizon_s) + _GRACE_S)
        self._apply = redis.register_script((resources.files("stream.clicks") / "store.lua").read_text("utf-8"))

    async def fence(self, partition: int) -> int:
        """The first examples offset of the partition that the store does not hold.

        Where the fence is none, the partition is cleared: it is filled again from the log.
        """
        try:
            with damage_is_said():
                return fence_of(await cast("Awaitable[bytes | None]", self._redis.get(self._fence(partition))))
        except DamagedStoreError as error:
            await self._clear(partition, error)
            return 0

    async def _clear(self, partition: int, error: DamagedStoreError) -> None:
        _log.error(
            "the store of clicks held what no worker wrote; it is filled again from the log",
            partition=partition,
            reason=str(error),
            remedy="look who else may write to this Redis",
        )
        name = self._fence(partition).encode()
        await clear(self._redis, [name + b":*"], [name])

    async def put(self, partition: int, expected: int, fence: int, examples: ExampleRows) -> int:
        """Store what became known with examples, which take the fence from ``expected`` to ``fence``.

        Returns where the fence stands afterwards; elsewhere than ``fence`` means that nothing was written.
        """
        clicks, conversions = clicks_in(examples)
        keys = [*self._names(partition, clicks.impression_id), *self._names(partition, conversions.impression_id)]
        head = [str(expected), str(fence), self._ttl_s, str(len(clicks))]
        values = [*packed(clicks), *packed_times(conversions.known_ms)]
        try:
            with damage_is_said():
                return fence_of(await self._apply(keys=[self._fence(partition), *keys], args=[*head, *values]))
        except DamagedStoreError as error:
            await self._clear(partition, error)
            return 0

    async def find(self, partition: int, impression_ids: NDArray[np.uint64]) -> StoredClicks:
        """Those of the clicks that are known."""
        names = self._names(partition, impression_ids)
        values = await cast("Awaitable[list[bytes | None]]", self._redis.mget(names)) if names else []
        return unpacked([value for value in values if value is not None], *self._widths)

    def _fence(self, partition: int) -> str:
        return f"{self._base}{{{partition}}}:click"

    def _names(self, partition: int, impression_ids: NDArray[np.uint64]) -> list[str]:
        prefix = f"{self._base}{{{partition}}}:click:"
        return [f"{prefix}{key:016x}" for key in impression_ids.tolist()]
