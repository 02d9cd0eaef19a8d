"""Users before serving while the workers catch up: they ask, look and click, and know their true probabilities."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import orjson

from replay.market_laws import PLACEMENTS, click_delay_s
from stream.records.topics import CLICKS, IMPRESSIONS
from tests.bench.loop_market import SLOTS, LoopMarket
from tests.stream.pipeline import Front

REQUESTS_PER_S = 15
_PREPARED_S = 1_800


class Users:
    """So many requests a second of three ads each, all of which are shown.

    served : (seconds of the monotonic clock, true p, served p) of each display. failed : answers that were none.
    """

    def __init__(self, market: LoopMarket, http: aiohttp.ClientSession, kafka: Front) -> None:
        self.failed = 0
        self._market, self._http, self._kafka = market, http, kafka
        world = market.world
        self._requests = world.requests(world.rng(7), REQUESTS_PER_S * _PREPARED_S, SLOTS)
        self._true = world.click_probability(self._requests)
        self._rng = world.rng(8)
        self._served: list[tuple[float, float, float]] = []
        self._seconds: list[float] = []
        self._under_way: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """They ask as long as this is open."""
        asking = asyncio.create_task(self._ask_on())
        try:
            yield
        finally:
            asking.cancel()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(asking, *self._under_way, return_exceptions=True)

    def observed_over_expected(self, start_s: float, stop_s: float) -> float:
        """Σ true p / Σ served p of a span of the monotonic clock."""
        rows = np.array([(true, p) for at, true, p in self._served if start_s <= at < stop_s])
        return float(rows[:, 0].sum() / rows[:, 1].sum())

    def latencies(self) -> str:
        """How many answers came, and how fast."""
        p50, p99 = np.quantile(self._seconds, [0.5, 0.99])
        return f"{len(self._seconds)} answers, p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, {self.failed} failed"

    async def _ask_on(self) -> None:
        began = time.monotonic()
        for number in range(len(self._requests.user)):
            await asyncio.sleep(max(began + number / REQUESTS_PER_S - time.monotonic(), 0))
            self._start(self._ask(number))

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ask(self, number: int) -> None:
        request = self._requests
        body = {
            "user": self._market.attributes(int(request.user[number])),
            "context": {"placement": PLACEMENTS[request.placement[number]]},
            "ads": [self._market.ad_attributes(int(ad)) for ad in request.ads[number]],
        }
        began = time.monotonic()
        async with self._http.post("/v1/rank", json=body) as answer:
            payload = await answer.read()
        self._seconds.append(time.monotonic() - began)
        if answer.status != 200:
            self.failed += 1
            return
        answered = orjson.loads(payload)
        for entry in answered["ranked"]:  # they are shown in the order in which they were sent
            true, p = float(self._true[number, entry["index"]]), float(entry["p"])
            self._served.append((began, true, p))
            self._start(self._see(int(entry["impression_id"]), int(answered["user_key"]), self._rng.random() < true))

    async def _see(self, impression_id: int, user_key: int, clicks: bool) -> None:
        await self._tell(IMPRESSIONS, impression_id, user_key)
        if clicks:
            await asyncio.sleep(float(click_delay_s(self._rng.random())))
            await self._tell(CLICKS, impression_id, user_key)

    async def _tell(self, topic: str, impression_id: int, user_key: int) -> None:
        event = {"impression_id": str(impression_id), "user_key": str(user_key), "ts_ms": round(time.time() * 1000)}
        await self._kafka.send(topic, orjson.dumps(event), key=user_key)
