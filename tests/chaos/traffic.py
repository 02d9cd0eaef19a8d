"""Simulated users against serving and the broker: what is not taken is sent again, and time waits for it meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import numpy as np
import orjson
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from stream.records.partition import key_bytes, partition_of
from stream.records.topics import CONVERSIONS, IMPRESSIONS
from stream.records.wire import EventsRecord
from tests.chaos.cluster import Cluster
from tests.chaos.simulated_users import TICK_MS, TOPICS, Event, SimulatedUsers

_SINGLE = 0.5  # of events: one JSON record each, the others ride in columnar batches
_PATIENCE_S = 180.0
_PAUSE_S = 0.1


class TrafficError(RuntimeError):
    """Serving or the broker did not come back, or serving refused what it must take."""


class Outgoing(NamedTuple):
    """A record for a topic; to the partition of its key where none is named."""

    topic: str
    value: bytes
    key: bytes | None = None
    partition: int | None = None


class Traffic:
    """`async with Traffic(cluster, users, speed) as traffic: await traffic.run(stop)`.

    Parameters
    ----------
    speed : event time over wall-clock time, at most.
    """

    def __init__(self, cluster: Cluster, users: SimulatedUsers, speed: float) -> None:
        self.users = users
        self.requests = self.events = 0
        self._partitions = cluster.options.partitions
        self._tick_s = TICK_MS / 1000 / speed
        self._http = aiohttp.ClientSession(cluster.serving_url, timeout=aiohttp.ClientTimeout(total=10))
        self._producer = AIOKafkaProducer(
            bootstrap_servers=cluster.settings.kafka_bootstrap_servers,
            acks="all",
            enable_idempotence=cluster.is_kafka,
        )

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()
        await self._producer.stop()

    async def run(self, stop: asyncio.Event) -> None:
        """Play tick after tick until told to stop. Raises TrafficError."""
        while not stop.is_set():
            began_s = time.monotonic()
            await self._ask(self.users.requests())
            await self._step(self.users.now_ms + TICK_MS, [*self.users.strays()], [*self.users.broken()])
            await asyncio.sleep(max(began_s + self._tick_s - time.monotonic(), 0))

    async def play_out(self) -> None:
        """Let happen what is still to come of what was shown; nobody asks for anything new."""
        while (next_ms := self.users.next_ms) is not None:
            ahead = max(next_ms - self.users.now_ms, 0) // TICK_MS + 1
            await self._step(self.users.now_ms + ahead * TICK_MS)

    async def pass_time(self, seconds: float, events: Iterable[Event] = ()) -> int:
        """Let so much time pass, and these events happen; the time that all inputs were promised."""
        await self._step(self.users.now_ms + round(seconds * 1000), events)
        return self.users.now_ms

    async def promise_served(self) -> None:
        """Let serving tell once more how far time has come."""
        await self._post({"requests": [], "watermark_ms": self.users.now_ms})

    async def _ask(self, requests: list[dict[str, Any]]) -> None:
        answer = await self._post({"requests": requests})
        for request, result in zip(requests, answer["results"], strict=True):
            self.users.show(request["ts_ms"], int(result["user_key"]), [*map(int, result["impression_ids"])])
        self.requests += len(requests)

    async def _step(
        self, until_ms: int, events: Iterable[Event] = (), broken: Iterable[tuple[str, bytes]] = ()
    ) -> None:
        """Send what happens before ``until_ms``; once it is stored, promise that nothing earlier follows."""
        happened = [*events, *self.users.due(until_ms)]
        self.events += len(happened)
        await self._store([*self._records(happened), *(Outgoing(topic, value) for topic, value in broken)])
        await self.promise_served()
        promise = orjson.dumps({"watermark_ms": until_ms})
        await self._store(Outgoing(topic, promise, partition=p) for topic in TOPICS for p in range(self._partitions))

    def _records(self, events: Iterable[Event]) -> Iterable[Outgoing]:
        batches: dict[tuple[str, int], list[Event]] = defaultdict(list)
        for event in events:
            if self.users.chance(_SINGLE):
                yield Outgoing(event.topic, _json(event, as_text=self.users.chance(0.5)), key_bytes(event.user_key))
            else:
                home = int(partition_of(np.array([event.user_key], np.uint64), self._partitions)[0])
                batches[event.topic, home].append(event)
        for (topic, partition), batch in batches.items():
            yield Outgoing(topic, _columnar(batch), partition=partition)

    async def _store(self, records: Iterable[Outgoing]) -> None:
        """Send until the broker has taken all of it."""
        missing, deadline = [*records], time.monotonic() + _PATIENCE_S
        while missing:
            outcomes = await asyncio.gather(*map(self._send, missing))
            missing = [record for record, stored in zip(missing, outcomes, strict=True) if not stored]
            if missing and time.monotonic() > deadline:
                raise TrafficError(
                    f"the broker took none of {len(missing)} records within {_PATIENCE_S:g} s: the stream stands "
                    "still. Look at its log."
                )
            if missing:
                await asyncio.sleep(_PAUSE_S)

    async def _send(self, record: Outgoing) -> bool:
        try:
            await self._producer.send_and_wait(record.topic, record.value, key=record.key, partition=record.partition)
        except KafkaError as error:
            if not (error.retriable or isinstance(error, TimeoutError)):
                raise
            return False
        return True

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask serving until it answers."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                async with self._http.post("/v1/score", json=body) as response:
                    payload = await response.read()
                    if response.status == 200:
                        answer: dict[str, Any] = orjson.loads(payload)
                        return answer
                    raise TrafficError(f"serving answered {response.status}: {payload[:500].decode(errors='replace')}")
            except (aiohttp.ClientError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise TrafficError(
                        f"serving did not answer within {_PATIENCE_S:g} s ({type(error).__name__}: {error}): the "
                        "stream stands still. Look at its log."
                    ) from error
                await asyncio.sleep(_PAUSE_S)


def _json(event: Event, *, as_text: bool) -> bytes:
    """One event as a client sends it, its ids as text or as numbers."""
    ids = {"impression_id": event.impression_id, "user_key": event.user_key}
    fields: dict[str, Any] = {name: str(value) if as_text else value for name, value in ids.items()}
    fields["ts_ms"] = event.ts_ms
    if event.topic == IMPRESSIONS:
        fields["position"] = event.position
    elif event.topic == CONVERSIONS:
        fields["value"] = event.value
    return orjson.dumps(fields)


def _columnar(events: list[Event]) -> bytes:
    columns = list(zip(*events, strict=True))
    named = dict(zip(Event._fields[1:], columns[1:], strict=True))
    return EventsRecord.of(rows=len(events), **named).encode()
