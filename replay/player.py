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
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import numpy as np
import orjson

from learners.encode import Request
from replay.errors import PlaybackError
from replay.scenario import Scenario
from replay.timeline import EventQueue, Events, ticks
from stream.inputs import EventRows
from stream.partition import partition_of
from stream.records import EventsRecord
from stream.topics import CLICKS, CONVERSIONS, IMPRESSIONS


class Send(Protocol):
    """Hands a record to Kafka; returns once it is buffered, raises when the broker refuses it."""

    async def __call__(self, topic: str, partition: int, value: bytes) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerOptions:
    """How fast the log is played."""

    speed: float | None = None  # times real time; None: as fast as the lockstep allows
    max_lag_s: float = 300.0  # bounded lead over the workers, in event time
    tick_s: float = 20.0  # requests of one tick are scored in one call, so an outcome is seen a tick later at most
    pulse_s: float = 20.0  # how often every partition hears the time
    drain_timeout_s: float = 60.0  # wall clock without any progress of the workers before we give up

    def __post_init__(self) -> None:
        if self.speed is not None and self.speed <= 0:
            raise ValueError(f"speed={self.speed} must be positive (or 'max'): time would not pass. Pass --speed max.")
        if self.max_lag_s < 2 * self.tick_s or self.max_lag_s < 2 * self.pulse_s:
            raise ValueError(
                f"max_lag_s={self.max_lag_s} must be at least twice tick_s={self.tick_s} and pulse_s={self.pulse_s}: "
                "the player would wait for a time that it has not announced. Raise --max-lag-s."
            )


@dataclass(slots=True)
class Played:
    """What a run did."""

    requests: int = 0
    events: int = 0
    wall_s: float = 0.0
    versions: set[int] = field(default_factory=set)


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
        self._announced_ms = 0
        self.played = Played()

    async def run(self, start_ms: int, end_ms: int, progress: Callable[[int], None]) -> Played:
        """Play ``start_ms <= ts < end_ms`` and let the outcomes of the last requests come in.

        ``progress`` is called with the number of requests played since its last call.

        Raises
        ------
        PlaybackError
            When serving answers an error or the workers make no progress for ``drain_timeout_s``.
        """
        options = self._options
        began = time.monotonic()
        tick_ms, pulse_ms = round(options.tick_s * 1000), round(options.pulse_s * 1000)
        self._announced_ms = self._applied_ms = start_ms
        await self._announce(start_ms)
        for tick in ticks(self._scenario.requests(start_ms, end_ms), start_ms, end_ms, tick_ms):
            await self._pass_time(tick.start_ms, pulse_ms)
            await self._pace(began, start_ms, tick.start_ms)
            await self._keep_step(tick.end_ms)
            await self._ask(tick.requests)
            await self._emit(self._queue.pop_until(tick.end_ms))
            progress(len(tick.requests))
        await self._pass_time(end_ms, pulse_ms)
        await self._drain(end_ms + round(self._scenario.click_window_s * 1000), pulse_ms)
        self.played.wall_s = time.monotonic() - began
        return self.played

    async def _pass_time(self, until_ms: int, pulse_ms: int) -> None:
        """Emit what happens before ``until_ms`` and tell every partition the time, pulse by pulse."""
        while self._announced_ms + pulse_ms <= until_ms:
            at = self._announced_ms + pulse_ms
            if self._queue.next_ms is None or self._queue.next_ms >= at:
                # nothing happens for a while: one step as long as the lockstep allows instead of many pulses
                quiet_until = until_ms if self._queue.next_ms is None else min(until_ms, self._queue.next_ms)
                longest = self._announced_ms + round(self._options.max_lag_s * 500)
                at = max(at, min(quiet_until, longest))
            await self._keep_step(at)
            await self._emit(self._queue.pop_until(at))
            await self._announce(at)

    async def _drain(self, end_ms: int, pulse_ms: int) -> None:
        """Let the remaining outcomes happen, then wait until all of it is applied."""
        while self._queue.next_ms is not None:
            await self._pass_time(self._queue.next_ms + pulse_ms, pulse_ms)
        await self._pass_time(max(end_ms, self._announced_ms) + 2 * pulse_ms, pulse_ms)
        await self._wait_applied(self._announced_ms)

    async def _keep_step(self, until_ms: int) -> None:
        lag_ms = round(self._options.max_lag_s * 1000)
        if until_ms - self._applied_ms > lag_ms:
            await self._wait_applied(until_ms - lag_ms)

    async def _wait_applied(self, at_ms: int) -> None:
        """Until serving says that everything before ``at_ms`` is applied."""
        progress_at, before = time.monotonic(), self._applied_ms
        while self._applied_ms < at_ms:
            await self._post("/v1/score", {"requests": []})
            if self._applied_ms > before:
                progress_at, before = time.monotonic(), self._applied_ms
            elif time.monotonic() - progress_at > self._options.drain_timeout_s:
                raise PlaybackError(
                    f"the workers have applied nothing for {self._options.drain_timeout_s:.0f} s (applied "
                    f"{self._applied_ms}, waiting for {at_ms}): the replay cannot go on in step. Look at the worker's "
                    "log, and whether it reads the same broker and topics."
                )
            if self._applied_ms < at_ms:
                await asyncio.sleep(0.002)

    async def _pace(self, began: float, start_ms: int, now_ms: int) -> None:
        if self._options.speed is not None:
            due = began + (now_ms - start_ms) / 1000 / self._options.speed
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _ask(self, requests: list[Request]) -> None:
        if self._scenario.top_k is None:
            await self._score(requests)
        else:
            for request in requests:
                await self._rank(request)
        self.played.requests += len(requests)

    async def _score(self, requests: list[Request]) -> None:
        body = {"requests": [_wire(request) for request in requests]}
        answer = await self._post("/v1/score", body)
        for request, result in zip(requests, answer["results"], strict=True):
            ids = [int(i) for i in result["impression_ids"]]
            self._show(request, int(result["user_key"]), ids, range(len(ids)))

    async def _rank(self, request: Request) -> None:
        answer = await self._post("/v1/rank", _wire(request))
        ranked = answer["ranked"]
        ids = {entry["index"]: int(entry["impression_id"]) for entry in ranked}
        self._show(request, int(answer["user_key"]), ids, [entry["index"] for entry in ranked])

    def _show(self, request: Request, user_key: int, ids: Any, order: Any) -> None:
        for display in self._scenario.displays(request, order):
            self._queue.push(ids[display.index], user_key, display)

    async def _emit(self, events: Events) -> None:
        for topic, rows in zip((IMPRESSIONS, CLICKS, CONVERSIONS), events, strict=True):
            if not len(rows.ts_ms):
                continue
            home = partition_of(rows.user_key, self._partitions)
            for partition in np.unique(home).tolist():
                await self._send(topic, partition, _record(rows, home == partition).encode())
            self.played.events += len(rows.ts_ms)

    async def _announce(self, at_ms: int) -> None:
        """Every event before ``at_ms`` has been sent: say so to all partitions, through serving for its own topic."""
        value = EventsRecord(
            rows=0, impression_id=b"", ts_ms=b"", user_key=b"", position=b"", value=b"", watermark_ms=at_ms
        ).encode()
        for topic in (IMPRESSIONS, CLICKS, CONVERSIONS):
            for partition in range(self._partitions):
                await self._send(topic, partition, value)
        await self._post("/v1/score", {"requests": [], "watermark_ms": at_ms})
        self._announced_ms = at_ms

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._http.post(path, data=orjson.dumps(body)) as response:
                payload = await response.read()
        except aiohttp.ClientError as error:
            raise PlaybackError(f"serving does not answer {path}: {error}. Look at the log of serving.") from error
        if response.status != 200:
            raise PlaybackError(
                f"serving answered {response.status} to {path}: {payload[:500].decode(errors='replace')}"
            )
        answer: dict[str, Any] = orjson.loads(payload)
        self._applied_ms = max(self._applied_ms, int(answer["applied_ms"]))
        self.played.versions.add(int(answer["model_version"]))
        return answer


def _wire(request: Request) -> dict[str, Any]:
    return {
        "request_id": str(request.request_id),
        "ts_ms": request.ts_ms,
        "user": request.user,
        "context": request.context,
        "ads": request.ads,
    }


def _record(rows: EventRows, mask: Any) -> EventsRecord:
    return EventsRecord.of(
        rows=int(mask.sum()),
        impression_id=rows.impression_id[mask],
        ts_ms=rows.ts_ms[mask],
        user_key=rows.user_key[mask],
        position=rows.position[mask],
        value=rows.value[mask],
    )
