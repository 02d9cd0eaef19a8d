"""What Redis holds of the stream, key by key, and what a fold of the whole examples topic would have put there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from redis.asyncio import Redis

from learners.spec import FeatureSpec
from stream.examples import ExampleRows, concat
from stream.session_memory import MemorySessionStore
from stream.sessions import SessionFold
from stream.settled_clicks import MemoryClickStore, clicks_in, packed
from tests.chaos.outcome import ExamplesRecord

_AT_ONCE = 5_000

Values = dict[bytes, bytes]


class Stores:
    """The keys of one feature spec in the Redis at a URL."""

    def __init__(self, url: str, spec: FeatureSpec) -> None:
        self._url = url
        self._spec = spec

    async def values(self, partition: int, kinds: str) -> Values:
        """The values of a partition's keys of these kinds: users' states (u), counters' (c), settled clicks (k)."""
        redis = Redis.from_url(self._url)
        try:
            names = [
                name
                for kind in kinds
                async for name in redis.scan_iter(f"{_base(self._spec, partition)}{kind}:*", count=_AT_ONCE)
            ]
            found: Values = {}
            for at in range(0, len(names), _AT_ONCE):
                part = names[at : at + _AT_ONCE]
                values = cast("list[bytes | None]", await redis.mget(part))
                found |= {name: value or b"" for name, value in zip(part, values, strict=True)}
            return found
        finally:
            await redis.aclose()

    async def fences(self, partitions: int, name: str) -> dict[int, int]:
        """Up to which offset of the examples each partition's states (fence) or clicks (clicks) are taken up."""
        redis = Redis.from_url(self._url)
        try:
            names = [f"{_base(self._spec, partition)}{name}" for partition in range(partitions)]
            values = cast("list[bytes | None]", await redis.mget(names))
            return {partition: int(value or 0) for partition, value in enumerate(values)}
        finally:
            await redis.aclose()


def folded_sessions(spec: FeatureSpec, partition: int, records: Sequence[ExamplesRecord]) -> Values:
    """The states after all of a partition's examples, under the names of their keys."""
    fold, store = SessionFold(spec), MemorySessionStore(spec)
    told = [record.content.rows for record in records]
    for rows in told:
        store.step(fold, rows)
    states = store.load(0, fold.keys(told))
    base = _base(spec, partition)
    named = {"u": (states.keys.users, states.users), "c": (states.keys.counters, states.counters)}
    return {
        f"{base}{kind}:{key:016x}".encode(): values[at].tobytes()
        for kind, (keys, values) in named.items()
        for at, key in enumerate(keys.tolist())
    }


def folded_clicks(spec: FeatureSpec, partition: int, records: Sequence[ExamplesRecord]) -> Values:
    """The settled clicks of all of a partition's examples, each with the byte that tells whether it converted."""
    none = ExampleRows.empty(spec.id_columns, spec.dense_inputs)
    rows = concat([none, *(record.content.rows for record in records)])
    store = MemoryClickStore(spec.id_columns, spec.dense_inputs)
    store.put(rows)
    clicks, _ = clicks_in(rows)
    found = store.find(np.unique(clicks.impression_id))
    base = _base(spec, partition)
    values: Mapping[int, bytes] = dict(zip(found.examples.impression_id.tolist(), packed(found.examples), strict=True))
    flags = found.converted.tolist()
    return {
        f"{base}k:{key:016x}".encode(): value + bytes([flag])
        for (key, value), flag in zip(values.items(), flags, strict=True)
    }


def _base(spec: FeatureSpec, partition: int) -> str:
    return f"millstream:{spec.hash}:{{{partition}}}:"
