"""What Redis holds of the stream, key by key, and what a fold of the whole examples topic would have put there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from redis.asyncio import Redis

from learners.features.spec import FeatureSpec
from stream.clicks.stored_clicks import MemoryClickStore, clicks_in, packed, packed_times
from stream.records.examples import ExampleRows, concat
from stream.sessions.fold import SessionFold
from stream.sessions.in_memory import MemorySessionStore
from tests.chaos.outcome import ExamplesRecord

_AT_ONCE = 5_000

Values = dict[bytes, bytes]


class Stores:
    """The keys of one feature spec in the Redis at a URL."""

    def __init__(self, url: str, spec: FeatureSpec) -> None:
        self._url = url
        self._spec = spec

    async def values(self, partition: int, kinds: Sequence[str]) -> Values:
        """The values of a partition's keys of these kinds: users' states (u), counters' (c), clicks (click)."""
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
        """Up to which offset of the examples each partition's states (fence) or clicks (click) are taken up."""
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
    records_rows = [record.rows for record in records]
    for rows in records_rows:
        store.step(fold, rows)
    states = store.load(0, fold.keys(records_rows))
    base = _base(spec, partition)
    named = {"u": (states.keys.users, states.users), "c": (states.keys.counters, states.counters)}
    return {
        f"{base}{kind}:{key:016x}".encode(): values[at].tobytes()
        for kind, (keys, values) in named.items()
        for at, key in enumerate(keys.tolist())
    }


def folded_clicks(spec: FeatureSpec, partition: int, records: Sequence[ExamplesRecord]) -> Values:
    """The clicks of all of a partition's examples, each with the times of its conversions."""
    none = ExampleRows.empty(spec.id_columns, spec.dense_inputs)
    rows = concat([none, *(record.rows for record in records)])
    store = MemoryClickStore(spec.id_columns, spec.dense_inputs)
    store.put(rows)
    clicks, _ = clicks_in(rows)
    found = store.find(np.unique(clicks.impression_id))
    base = _base(spec, partition)
    rows_and_times = zip(packed(found.examples), found.converted_ms, strict=True)
    return {
        f"{base}click:{key:016x}".encode(): row + b"".join(packed_times(ts_ms))
        for key, (row, ts_ms) in zip(found.examples.impression_id.tolist(), rows_and_times, strict=True)
    }


def _base(spec: FeatureSpec, partition: int) -> str:
    return f"millstream:{spec.hash}:{{{partition}}}:"
