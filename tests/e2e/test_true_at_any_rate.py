"""The real programs on the wall clock, from a base of twice the click rate on: the served p comes to the true one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest

from learners.deepfm.config import DeepFMConfig
from learners.nn.heads import Head
from replay.market_laws import PLACEMENTS
from replay.truth_world import World, WorldConfig
from stream.records.topics import CLICKS, IMPRESSIONS
from tests.brokers import TestTopics
from tests.e2e.programs import serving
from tests.stream.pipeline import Front, base_snapshot, front, worker

CTR, REQUESTS_PER_S, RUN_S, CLICK_S = 0.10, 30, 180, 2.0
JUDGED_FROM_S = 90
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(RUN_S + 2 * 90 + 30)]


class Market:
    """Asks for three ads thirty times a second, shows all three, and clicks about two seconds later."""

    def __init__(self, world: World, http: aiohttp.ClientSession, kafka: Front) -> None:
        self.world, self._http, self._kafka = world, http, kafka
        self._requests = world.requests(world.rng(0), REQUESTS_PER_S * RUN_S, world.config.slots)
        self._rng = world.rng(1)
        self._under_way: set[asyncio.Task[None]] = set()
        self.served: list[tuple[float, float, float]] = []  # seconds since the start, true p, served p

    async def run(self) -> None:
        """The whole time, then what is under way."""
        began = time.monotonic()
        for number in range(len(self._requests.user)):
            await asyncio.sleep(max(began + number / REQUESTS_PER_S - time.monotonic(), 0))
            self._start(self._ask(number, time.monotonic() - began))
        await asyncio.gather(*self._under_way)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ask(self, number: int, at_s: float) -> None:
        request = self._requests._replace(
            user=self._requests.user[number : number + 1],
            placement=self._requests.placement[number : number + 1],
            ads=self._requests.ads[number : number + 1],
        )
        user = int(request.user[0])
        body = {
            "user": {"user_id": user, "segment": int(self.world.segment[user])},
            "context": {"placement": PLACEMENTS[request.placement[0]]},
            "ads": [self.world.ad_attributes(int(ad)) for ad in request.ads[0]],
        }
        async with self._http.post("/v1/rank", json=body) as answer:
            payload = await answer.read()
            assert answer.status == 200, payload
        answered = orjson.loads(payload)
        order = np.array([[entry["index"] for entry in answered["ranked"]]])
        true = self.world.click_probability(request.take(order))[0]
        user_key = int(answered["user_key"])
        for entry, p in zip(answered["ranked"], true.tolist(), strict=True):
            self.served.append((at_s, p, entry["p"]))
            impression_id = int(entry["impression_id"])
            await self._tell(IMPRESSIONS, impression_id, user_key)
            if self._rng.random() < p:
                self._start(self._click(impression_id, user_key, float(self._rng.exponential(CLICK_S))))

    async def _click(self, impression_id: int, user_key: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._tell(CLICKS, impression_id, user_key)

    async def _tell(self, topic: str, impression_id: int, user_key: int) -> None:
        event = {"impression_id": str(impression_id), "user_key": str(user_key), "ts_ms": round(time.time() * 1000)}
        await self._kafka.send(topic, orjson.dumps(event), key=user_key)


def observed_over_expected(served: np.ndarray, start_s: float, stop_s: float) -> float:
    """Σ true p / Σ served p of a span of seconds."""
    rows = served[(served[:, 0] >= start_s) & (served[:, 0] < stop_s)]
    return float(rows[:, 1].sum() / rows[:, 2].sum())


async def test_served_p_is_true_a_minute_and_a_half_after_the_first_deployment(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """A base that says twice the truth, 90 displays a second at a true 10 %: from 90 s on O/E is 0.9 to 1.1."""
    world = World(WorldConfig(seed=1, ctr=CTR))
    wrong = DeepFMConfig(heads=(Head("click", start_p=2 * CTR),))
    base_snapshot(tmp_path / "snapshots", world.spec, config=wrong)
    environment = kafka_topics.environment(redis_url)
    async with (
        worker(environment, tmp_path / "snapshots", tmp_path / "worker.log", "wall", world.spec.name),
        serving(
            environment, tmp_path / "snapshots", tmp_path / "serving.log", spec=world.spec.name, clock="wall"
        ) as http,
        front(kafka_topics.settings(redis_url)) as kafka,
    ):
        market = Market(world, http, kafka)
        await market.run()
    served = np.array(market.served)
    by_ten_s = [round(observed_over_expected(served, start, start + 10), 3) for start in range(0, RUN_S, 10)]
    assert observed_over_expected(served, 0, 5) < 0.65, by_ten_s  # it began wrong
    assert 0.90 <= observed_over_expected(served, JUDGED_FROM_S, RUN_S) <= 1.10, by_ten_s
    for start in range(JUDGED_FROM_S, RUN_S, 30):
        assert 0.82 <= observed_over_expected(served, start, start + 30) <= 1.22, by_ten_s
