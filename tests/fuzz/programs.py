"""A worker with all agents and serving, on an embedded broker, into whose topics and port mutated inputs are sent.

They must live, count what they reject with its reason, answer no 5xx but 503, and learn what is valid and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import numpy as np
import orjson

from learners.examples.kinds import CLICK, EXPOSURE
from stream.embedded.broker import EmbeddedBroker
from stream.embedded.redis import EmbeddedRedis
from stream.join.batches import events_batch, served_batch
from stream.kafka.admin import ensure_topics
from stream.kafka.input_record import InputRecord
from stream.kafka.log_reader import LogReader
from stream.learn.published import follow, last_published
from stream.records.columns import RecordError
from stream.records.examples_codec import decode_examples
from stream.records.internal import decode_calibration, decode_weights
from stream.records.topics import (
    CALIBRATION,
    CLICKS,
    CONVERSIONS,
    EXAMPLES,
    IMPRESSIONS,
    JOURNAL,
    SERVED,
    WEIGHTS,
    topic_table,
)
from stream.records.validity import faults, learnable
from stream.servers.settings import StreamSettings
from tests.e2e.programs import serving
from tests.fuzz.mutate import damaged
from tests.fuzz.records import AHEAD_MS
from tests.fuzz.targets import TARGETS
from tests.stream.pipeline import SPEC, Front, Worker, base_snapshot, front, said, serve, until, values, worker

PARTITIONS = 2
_TOPICS = {
    "impressions": IMPRESSIONS, "clicks": CLICKS, "conversions": CONVERSIONS, "served": SERVED, "examples": EXAMPLES,
    "weights": WEIGHTS, "calibration": CALIBRATION, "journal": JOURNAL,
}  # fmt: skip
_OWN = (WEIGHTS, CALIBRATION, JOURNAL)  # sealed: what is changed in them is not sealed again
_BODIES = {"rank_body": "/v1/rank", "score_body": "/v1/score"}
_CALL = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_MARKED = 24  # displays between mutated inputs, a third of them clicked
_FIRST_MARKED = 0x5EED << 32  # their ids from there on: no mutation makes such a number by chance
_ROUND_RECORDS, _ROUND_CALLS = 24, 12


@dataclass(slots=True)
class ProgramsOutcome:
    """What was sent, what became of it, what should not have."""

    records: int = 0
    calls: int = 0
    rejected: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def check(self, holds: object, fault: str) -> None:
        """Note a fault unless it holds."""
        if not holds:
            self.faults.append(fault)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        counts = {"records": self.records, "calls": self.calls, "rejected": self.rejected}
        return counts | {"statuses": statuses, "faults": self.faults}


async def fuzz_programs(work: Path, *, seconds: float, seed: int, lives: int = 2) -> ProgramsOutcome:
    """Start the programs, fuzz them for some seconds, check them.

    lives : of the worker; each later one begins as after a crash, with what the one before it was sent in its topics.
    """
    outcome = ProgramsOutcome()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker())
        redis = await stack.enter_async_context(EmbeddedRedis())
        await ensure_topics(broker.bootstrap, topic_table(PARTITIONS))
        settings = StreamSettings(
            kafka_bootstrap_servers=broker.bootstrap, redis_url=redis.url, partitions=PARTITIONS, topic_prefix=""
        )
        run = _Run(work, settings, seed, outcome, await stack.enter_async_context(front(settings)))
        try:
            await run.all(seconds, lives)
        except (AssertionError, aiohttp.ClientError, TimeoutError, OSError) as error:
            outcome.faults.append(f"{type(error).__name__}: {error}"[:2_000])
        for name in ("serving", *(f"worker{life}" for life in range(lives))):
            log = work / f"{name}.log"
            text = said(log) if log.exists() else ""  # after a fault it was not started
            outcome.check("Traceback" not in text, f"a traceback in the log of {name}: {text[-1_500:]}")
    return outcome


class _Run:
    """The programs under fuzz."""

    def __init__(self, work: Path, settings: StreamSettings, seed: int, outcome: ProgramsOutcome, at: Front) -> None:
        self._work = work
        self._random = Random(seed)
        self._outcome = outcome
        self._at = at
        self._environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers or "",
            "REDIS_URL": settings.redis_url or "",
            "MILLSTREAM_PARTITIONS": str(PARTITIONS),
            "MILLSTREAM_TOPIC_PREFIX": "",
            "MILLSTREAM_ARCHIVE": str(work / "archive"),
            "MILLSTREAM_IDLE_TIMEOUT_S": "1",
            "MILLSTREAM_DISPLAY_HORIZON_S": "60",
            "MILLSTREAM_LEARN_BATCH_ROWS": "8",
            "MILLSTREAM_LEARN_INTERVAL_S": "1",
        }
        self._expected: Counter[tuple[str, str]] = Counter()  # rejects by topic and reason
        self._marked: set[tuple[int, int]] = set()  # kind, impression
        self._refused = 0

    async def all(self, seconds: float, lives: int) -> None:
        """Fuzz, check, and again after each crash."""
        snapshots = self._work / "snapshots"
        base_snapshot(snapshots)
        where = self._environment, snapshots
        async with serving(*where, self._work / "serving.log", spec=SPEC.name, clock="wall") as http:
            for life in range(lives):
                async with worker(*where, self._work / f"worker{life}.log", "wall") as running:
                    if not life:
                        await self._fuzz(http, time.monotonic() + seconds)
                    await self._show()
                    await self._check_worker(running, counted=not life)
                    running.process.kill()
                    await running.process.wait()
            await self._check_serving(http)
        await self._check_weights()

    async def _fuzz(self, http: aiohttp.ClientSession, until_s: float) -> None:
        while time.monotonic() < until_s:
            await self._show()
            for name, value in self._records():
                topic = _TOPICS[name]
                partitions = PARTITIONS if topic not in _OWN else 1
                await self._at.send(topic, value, partition=self._random.randrange(partitions), key=7)
                self._expected.update(_rejects(topic, value))
                self._outcome.records += 1
            for _ in range(_ROUND_CALLS):
                await self._call(http)
            await self._say_http(http)

    def _records(self) -> Iterator[tuple[str, bytes]]:
        for _ in range(_ROUND_RECORDS):
            name = self._random.choice(sorted(_TOPICS))
            target = TARGETS[name]
            if _TOPICS[name] in _OWN:
                seed, other = self._random.choice(target.seeds()), self._random.choice(target.seeds())
                yield name, damaged(seed, self._random, other)
            else:
                yield name, target.mutated(self._random)

    async def _call(self, http: aiohttp.ClientSession) -> None:
        name = self._random.choice(sorted(_BODIES))
        headers, body = {"Content-Type": "application/json"}, TARGETS[name].mutated(self._random)[1:]
        if self._random.randrange(4) == 0:
            compressed = TARGETS["compressed_body"].mutated(self._random)
            headers["Content-Encoding"], body = "gzip" if compressed[:1] == b"g" else "deflate", compressed[1:]
        async with http.post(_BODIES[name], data=body, headers=headers) as answer:
            text = await answer.read()
        self._note(answer.status, text)
        self._refused += 400 <= answer.status < 500

    def _note(self, status: int, text: bytes) -> None:
        self._outcome.calls += 1
        self._outcome.statuses[status] += 1
        self._outcome.check(status < 500 or status == 503, f"answered {status}: {text[:300]!r}")

    async def _say_http(self, http: aiohttp.ClientSession) -> None:
        """A head that is hardly HTTP."""
        url = http._base_url
        assert url is not None
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(damaged(_CALL, self._random))
        writer.write_eof()
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        status = answer.split(b" ", 2)[1] if answer.startswith(b"HTTP/1.1 ") else b"400"
        self._note(int(status), answer)

    async def _show(self) -> None:
        """Valid displays and clicks, which must be learned whatever comes between them."""
        now, first = time.time_ns() // 1_000_000 - 3_000, _FIRST_MARKED + len({key for _, key in self._marked})
        users = [1 + (first + at) % 40 for at in range(_MARKED)]
        shown = serve(users, [now] * _MARKED, PARTITIONS, first)
        clicked = shown.impression_id[::3]
        await self._at.show(shown, clicked)
        self._marked |= {(EXPOSURE, key) for key in shown.impression_id} | {(CLICK, key) for key in clicked}

    # -------------------------------------------------------------------------------------------------------- checks

    async def _check_worker(self, running: Worker, *, counted: bool) -> None:
        async def joined() -> bool:
            return self._marked <= set((await self._written())[0])

        await until(joined, "all valid displays and clicks are examples", 60)
        written, wanted = await self._written()
        for one in self._marked:
            self._outcome.check(written[one] == 1, f"{one} is there {written[one]} times")

        async def learned() -> bool:
            seen = await running.metrics()
            return not counted or seen["millstream_learned_rows_total"] == (await self._written())[1]

        await until(learned, f"the {wanted} valid rows were learned, and no others", 60)
        self._outcome.check(await running.health() == 200, "the worker is not ready")
        if counted:
            await self._check_counts(await running.metrics(), "millstream_dead_letters_total", (*_TOPICS.values(),))

    async def _check_counts(self, seen: Mapping[str, float], metric: str, topics: tuple[str, ...]) -> None:
        for (topic, reason), count in self._expected.items():
            if topic in topics and topic not in (*_OWN, EXAMPLES):
                found = seen[f'{metric}{{reason="{reason}",topic="{topic}"}}']
                self._outcome.check(found >= count, f"{found:.0f} of {count} {reason} rejects of {topic} were counted")
                self._outcome.rejected += count

    async def _written(self) -> tuple[Counter[tuple[int, int]], int]:
        """Examples by kind and impression, and how many of them can be learned, by a look at their topic."""
        found: Counter[tuple[int, int]] = Counter()
        valid = 0
        for value in await values(self._at.broker, EXAMPLES, PARTITIONS):
            try:
                rows, _ = decode_examples(value, SPEC)
            except RecordError:
                continue
            found.update(zip(rows.kind.tolist(), rows.impression_id.tolist(), strict=True))
            valid += int(learnable(rows, ("click",)).sum())
        return found, valid

    async def _check_serving(self, http: aiohttp.ClientSession) -> None:
        async with http.get("/readyz") as answer:
            self._outcome.check(answer.status == 200, f"serving is not ready: {await answer.text()}")
        body = {"user": {"user_id": 3}, "ads": [{"ad_id": 1}, {"ad_id": 2}]}
        async with http.post("/v1/rank", json=body) as answer:
            ranked = orjson.loads(await answer.read())
            self._outcome.check(
                answer.status == 200 and all(0 < ad["p"] < 1 for ad in ranked["ranked"]), f"no answer: {ranked}"
            )
        async with http.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        seen = {name: float(value) for name, value in (one.rsplit(" ", 1) for one in lines if not one.startswith("#"))}
        refused = _sum(seen, "millstream_serving_refused_calls_total")
        self._outcome.check(refused >= self._refused, f"{refused:.0f} of {self._refused} refused calls were counted")
        self._outcome.rejected += self._refused
        for topic in (WEIGHTS, CALIBRATION):
            wanted = sum(count for (name, _), count in self._expected.items() if name == topic)
            found = _sum(seen, "millstream_serving_rejected_records_total", topic)
            self._outcome.check(found >= wanted, f"{found:.0f} of {wanted} rejects of {topic} were counted by serving")
            self._outcome.rejected += wanted

    async def _check_weights(self) -> None:
        model = base_snapshot(self._work / "again").model()
        async with LogReader(self._at.broker) as log:
            version = await last_published(log)
            await follow(log, model, version=0, last_version=version)
        finite = all(np.isfinite(one).all() for one in model.state().values() if one.dtype.kind == "f")
        self._outcome.check(version > 0 and finite, f"weights of version {version} are not finite, or none came")


def _sum(seen: Mapping[str, float], metric: str, label: str = "") -> float:
    return sum(value for name, value in seen.items() if name.startswith(f"{metric}{{") and label in name)


def _rejects(topic: str, value: bytes) -> list[tuple[str, str]]:
    """Topic and reason of what is to be rejected of a record, whatever else there is."""
    now = time.time_ns() // 1_000_000
    record = [InputRecord(topic, 0, 0, value, now)]
    try:
        if topic == SERVED:
            return [(topic, one.reason) for one in served_batch(record, SPEC, AHEAD_MS).rejects]
        if topic in (IMPRESSIONS, CLICKS, CONVERSIONS):
            return [(topic, one.reason) for one in events_batch(topic, record, AHEAD_MS).rejects]
        if topic == EXAMPLES:
            return [(topic, one.reason) for one in faults(decode_examples(value, SPEC)[0])]
        if topic in (WEIGHTS, CALIBRATION):
            decode_weights(value) if topic == WEIGHTS else decode_calibration(value, PARTITIONS)
    except RecordError as error:
        return [(topic, error.reason)]
    return []
