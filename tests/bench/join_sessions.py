"""Session features through Redis, in a process of its own: ``python -m tests.bench.join_sessions``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from redis.asyncio import Redis

from learners.examples.kinds import CLICK
from learners.features.encode import Encoder, Request
from stream.records.examples import ExampleRows, concat
from stream.sessions.fold import SessionFold
from stream.sessions.shared_feed import SharedCounterFeed
from stream.sessions.store import RedisSessionStore
from tests.bench.join_log import SPEC, START_MS
from tests.bench.turns import serve

USERS, ADS, BATCH = 20_000, 2_000, 2_000


class _Traffic:
    """Displays of requests by users and of ads drawn by Zipf's law, and clicks of 5 % of them."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._encoder = Encoder(SPEC)
        self._at = 0

    def _draw(self, most: int, count: int) -> list[int]:
        weight = 1 / np.arange(1, most + 1)
        drawn: list[int] = self._rng.choice(most, count, p=weight / weight.sum()).tolist()
        return drawn

    def requests(self, count: int, ads: int) -> list[Request]:
        """Requests of so many ads each."""
        users = self._draw(USERS, count)
        shown = [self._draw(ADS, ads) for _ in range(count)]
        self._at += 1_000
        return [
            Request(
                request_id=self._at * 1_000 + i,
                ts_ms=START_MS + self._at,
                user={"user_id": user, "age_group": user % 5, "gender": user % 2, "region": user % 30},
                context={"placement": user % 3},
                ads=[
                    {"ad_id": ad, "campaign_id": ad // 4, "advertiser_id": ad // 20, "category": ad % 16}
                    for ad in candidates
                ],
            )
            for i, (user, candidates) in enumerate(zip(users, shown, strict=True))
        ]

    def record(self) -> ExampleRows:
        """One record: displays, then the clicks of some of them."""
        ids = self._encoder.ids(self.requests(BATCH, 1))
        none = ExampleRows.empty(SPEC.id_columns, SPEC.dense_inputs).columns()
        zeros = {name: np.zeros((BATCH, *column.shape[1:]), column.dtype) for name, column in none.items()}
        ts_ms = ids.ts_ms[ids.row_request]
        shown = {
            "impression_id": np.arange(BATCH, dtype=np.uint64) + np.uint64(self._at * 10_000),
            "user_key": ids.user_key[ids.row_request],
            "ts_ms": ts_ms,
            "known_ms": ts_ms,
            "ids": np.concatenate((ids.request_ids[ids.row_request], ids.ad_ids), axis=1),
        }
        rows = ExampleRows(**{**zeros, **shown})
        clicked = rows.take(self._rng.random(BATCH) < 0.05)
        return concat((rows, clicked.with_event(CLICK, known_ms=clicked.ts_ms + 7_000)))


def fold(*, url: str, batches: int) -> dict[str, float]:
    """Displays, 5 % of them with a click, a second into Redis: the median batch."""
    return {"per_second": asyncio.run(_fold(url, batches))}


async def _fold(url: str, batches: int) -> float:
    traffic, folding = _Traffic(), SessionFold(SPEC)
    records = [traffic.record() for _ in range(batches)]
    redis: Redis = Redis.from_url(url)
    await redis.flushall()
    store, seconds = RedisSessionStore(redis, SPEC, 1), []
    for at, record in enumerate(records):
        began = time.perf_counter()
        await store.step(folding, 0, at, at + 1, [record])
        seconds.append(time.perf_counter() - began)
    await redis.aclose()
    return BATCH / float(np.median(seconds[batches // 4 :]))


def read(*, url: str, reads: int) -> dict[str, float]:
    """What one user and 1000 ads take to read, milliseconds; the store is that which `fold` has filled."""
    return _quantiles(asyncio.run(_read(url, reads)))


async def _read(url: str, reads: int) -> list[float]:
    redis: Redis = Redis.from_url(url)
    store = RedisSessionStore(redis, SPEC, 1)
    feed, encoder, seconds = SharedCounterFeed(store), Encoder(SPEC), []
    await feed.refresh()
    for request in _Traffic(1).requests(reads, 1_000):
        ids = encoder.ids([request])
        began = time.perf_counter()
        await store.read(encoder, ids, feed.counters)
        seconds.append(time.perf_counter() - began)
    await redis.aclose()
    return seconds


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99]).tolist()
    return {"p50_ms": 1000 * p50, "p99_ms": 1000 * p99}


if __name__ == "__main__":
    serve({"fold": fold, "read": read})
