"""The player: stands where the ad front end and the users stand, over HTTP and Kafka.

For each tick of event time it asks serving for scores, shows the ads, and emits the impressions, clicks and
conversions that follow at their event times. At full speed it runs in lockstep: it is never more than ``max_lag_s`` of
event time ahead of what the workers have applied (serving's ``applied_ms``), because at thousands of times real time a
second of pipeline is an hour of the log, and the result would measure the machine instead of the method.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import aiohttp
import numpy as np
import orjson
from numpy.typing import NDArray

from learners.features.encode import Request
from replay.errors import PlaybackError
from replay.scenario import Scenario
from replay.timeline import EventQueue, Events, ticks
from stream.records.events import EventRows
from stream.records.partition import partition_of
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS
from stream.records.wire import EventsRecord

RANKED_AT_ONCE = 8  # rank requests in flight: a front end has many users at once
_JSON = {"Content-Type": "application/json"}
POLL_S = 0.005  # between two questions how far the workers are


class Send(Protocol):
    """Hands a record to Kafka; returns once it is buffered, raises when the broker refuses it."""

    async def __call__(self, topic: str, partition: int, value: bytes) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerOptions:
    """How fast the log is played."""

    speed: float | None = None  # times real time; None: as fast as the lockstep allows
    max_lag_s: float = 300.0  # bounded lead over the workers, in event time
    tick_s: float = 60.0  # requests of a tick are scored together: an outcome is seen a tick later at most
    drain_timeout_s: float = 60.0  # wall clock without any progress of the workers before we give up

    def __post_init__(self) -> None:
        if self.speed is not None and not 0 < self.speed < inf:
            raise ValueError(f"speed={self.speed} must be positive (or 'max'): time would not pass. Pass --speed max.")
        if not 0 < 2 * self.tick_s <= self.max_lag_s < inf:
            raise ValueError(
                f"max_lag_s={self.max_lag_s} must be at least twice tick_s={self.tick_s}, and that positive: the "
                "player would wait for a time that it has not announced. Raise --max-lag-s."
            )


@dataclass(slots=True)
class Played:
    """What a run did."""

    requests: int = 0
    events: int = 0
    wall_s: float = 0.0


class Player:
    """Plays one span of a scenario against a running serving and Kafka."""

    def __init__(
        self, scenario: Scenario, http: aiohttp.ClientSession, send: Send, partitions: int, options: PlayerOptions
    ) -> None:
        self._scenario = scenario
        self._http = http
        self._send = send
        self._partitions = partitions
        self._options = options
        self._queue = EventQueue()
        self._applied_ms = 0
        self._now_ms = 0
        self.played = Played()

    async def run(self, start_ms: int, end_ms: int, progress: Callable[[int], None]) -> Played:
        """Play ``start_ms <= ts < end_ms`` and let the outcomes of the last requests come in.

        ``progress`` is called with the number of requests played since its last call.

        Raises
        ------
        PlaybackError
            When serving answers an error or the workers make no progress for ``drain_timeout_s``.
        """
        began = time.monotonic()
        tick_ms = round(self._options.tick_s * 1000)
        self._now_ms = self._applied_ms = start_ms
        for tick in ticks(self._scenario.requests(start_ms, end_ms), start_ms, end_ms, tick_ms):
            await self._pass_time(tick.start_ms)
            await self._pace(began, start_ms, tick.start_ms)
            await self._step(tick.end_ms, tick.requests)
            progress(len(tick.requests))
        await self._drain(end_ms)
        self.played.wall_s = time.monotonic() - began
        return self.played

    async def _step(self, until_ms: int, requests: list[Request]) -> None:
        """Ask for the requests, then let happen what happens before ``until_ms`` and promise that nothing else will."""
        await self._wait_applied(until_ms - round(self._options.max_lag_s * 1000))
        await self._ask(requests, until_ms)
        await self._emit(self._queue.pop_until(until_ms), until_ms)
        self._now_ms = until_ms

    async def _pass_time(self, until_ms: int) -> None:
        """Nobody asks until then: steps of a tick where something happens, of half the lead where nothing does."""
        tick_ms, longest_ms = round(self._options.tick_s * 1000), round(self._options.max_lag_s * 500)
        while self._now_ms < until_ms:
            next_ms = self._queue.next_ms
            quiet = next_ms is None or next_ms >= self._now_ms + tick_ms
            quiet_until_ms = min(until_ms, until_ms if next_ms is None else next_ms)
            at_ms = min(quiet_until_ms, self._now_ms + longest_ms) if quiet else self._now_ms + tick_ms
            await self._step(min(at_ms, until_ms), [])

    async def _drain(self, end_ms: int) -> None:
        """Let the remaining outcomes happen, then wait until all of it is applied."""
        tick_ms = round(self._options.tick_s * 1000)
        while self._queue.next_ms is not None:
            await self._pass_time(self._queue.next_ms + tick_ms)
        await self._pass_time(max(end_ms, self._now_ms) + tick_ms)
        await self._wait_applied(self._now_ms)

    async def _wait_applied(self, at_ms: int) -> None:
        """Until serving says that everything before ``at_ms`` is applied."""
        progress_at, before = time.monotonic(), self._applied_ms
        while self._applied_ms < at_ms:
            await asyncio.sleep(POLL_S)
            await self._post("/v1/score", {"requests": []})
            if self._applied_ms > before:
                progress_at, before = time.monotonic(), self._applied_ms
            elif time.monotonic() - progress_at > self._options.drain_timeout_s:
                raise PlaybackError(
                    f"the workers have applied nothing for {self._options.drain_timeout_s:.0f} s (applied "
                    f"{self._applied_ms}, waiting for {at_ms}): the replay cannot go on in step. Look at the worker's "
                    "log, and whether it reads the same broker and topics."
                )

    async def _pace(self, began: float, start_ms: int, now_ms: int) -> None:
        if self._options.speed is not None:
            due = began + (now_ms - start_ms) / 1000 / self._options.speed
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _ask(self, requests: list[Request], until_ms: int) -> None:
        """Ask serving; with the last call goes the promise that no request before ``until_ms`` will follow."""
        self.played.requests += len(requests)
        if self._scenario.top_k is not None:
            for at in range(0, len(requests), RANKED_AT_ONCE):
                await self._rank(requests[at : at + RANKED_AT_ONCE])
            requests = []
        body = {"requests": [_wire(request) for request in requests], "watermark_ms": until_ms}
        answer = await self._post("/v1/score", body)
        for request, result in zip(requests, answer["results"], strict=True):
            ids = dict(enumerate(map(int, result["impression_ids"])))
            self._show(request, int(result["user_key"]), ids, list(ids))

    async def _rank(self, requests: list[Request]) -> None:
        answers = await asyncio.gather(*(self._post("/v1/rank", _wire(request)) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            ids = {entry["index"]: int(entry["impression_id"]) for entry in answer["ranked"]}
            self._show(request, int(answer["user_key"]), ids, list(ids))

    def _show(self, request: Request, user_key: int, ids: dict[int, int], order: list[int]) -> None:
        for display in self._scenario.displays(request, order):
            self._queue.push(ids[display.index], user_key, display)

    async def _emit(self, events: Events, until_ms: int) -> None:
        """One record a topic and partition: the events due and the promise. Conversions hold nothing back."""
        for topic, rows in zip((IMPRESSIONS, CLICKS, CONVERSIONS), events, strict=True):
            home = partition_of(rows.user_key, self._partitions)
            for partition in range(self._partitions):
                mine = home == partition
                if topic != CONVERSIONS or mine.any():
                    await self._send(topic, partition, _record(rows, mine, until_ms).encode())
            self.played.events += len(rows)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._http.post(path, data=orjson.dumps(body), headers=_JSON) as response:
                payload = await response.read()
        except aiohttp.ClientError as error:
            raise PlaybackError(f"serving does not answer {path}: {error}. Look at the log of serving.") from error
        if response.status != 200:
            raise PlaybackError(
                f"serving answered {response.status} to {path}: {payload[:500].decode(errors='replace')}"
            )
        answer: dict[str, Any] = orjson.loads(payload)
        self._applied_ms = max(self._applied_ms, int(answer["applied_ms"]))
        return answer


def _wire(request: Request) -> dict[str, Any]:
    return {
        "request_id": str(request.request_id),
        "ts_ms": request.ts_ms,
        "user": request.user,
        "context": request.context,
        "ads": request.ads,
    }


def _record(rows: EventRows, mine: NDArray[np.bool_], watermark_ms: int) -> EventsRecord:
    return EventsRecord.of(
        rows=int(mine.sum()),
        impression_id=rows.impression_id[mine],
        ts_ms=rows.ts_ms[mine],
        user_key=rows.user_key[mine],
        position=rows.position[mine],
        value=rows.value[mine],
        watermark_ms=watermark_ms,
    )
