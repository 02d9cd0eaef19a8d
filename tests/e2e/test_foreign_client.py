"""A stranger's client (kcat, JSON lines) against running workers and serving."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import orjson
import pytest

from learners.examples.kinds import CLICK, EXPOSURE
from stream.kafka.broker import Broker, find_broker
from stream.records.topics import CLICKS, DEADLETTER, IMPRESSIONS
from stream.records.wire import DeadLetter
from tests.brokers import TestTopics
from tests.e2e.programs import kcat_program, serving
from tests.stream.pipeline import SPEC, START_MS, base_snapshot, until, values, worker
from tests.stream.worker.test_process import examples_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
HORIZON_MS = 60_000
REQUESTS = 24


@pytest.fixture(scope="session")
def librdkafka(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which kcat runs on the librdkafka of the confluent-kafka wheel.

    Debian's librdkafka 2.0.2 stumbles over the tagged fields with which the embedded broker ends its ApiVersions answer
    ("Read underflow"); newer ones read them. Against Apache Kafka either works.
    """
    folder = tmp_path_factory.mktemp("librdkafka")
    package = importlib.util.find_spec("confluent_kafka")
    assert package is not None
    assert package.origin is not None
    bundled = Path(package.origin).parent.parent / "confluent_kafka.libs"
    library = next(bundled.glob("librdkafka-*.so*"))
    (folder / "librdkafka.so.1").symlink_to(library)
    return {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{bundled}"}


async def kcat(environment: Mapping[str, str], bootstrap: str, topic: str, lines: list[str], *options: str) -> None:
    """Produce ``key|value`` lines with kcat, keys partitioned as Java clients do."""
    process = await asyncio.create_subprocess_exec(
        kcat_program(), "-P", "-b", bootstrap, "-t", topic, "-K", "|", "-X", "topic.partitioner=murmur2", *options,
        stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    _, complaint = await process.communicate("".join(line + "\n" for line in lines).encode())
    assert process.returncode == 0, complaint.decode()


async def post(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST JSON, expect 200."""
    async with http.post(path, json=body) as answer:
        payload = await answer.read()
        assert answer.status == 200, payload
        return dict(orjson.loads(payload))


def request(number: int) -> dict[str, Any]:
    """A request of one ad, a second after the one before."""
    return {
        "request_id": str(number),
        "ts_ms": START_MS + number * 1_000,
        "user": {"user_id": number % 7, "age_group": "18-24"},
        "context": {"placement": "feed"},
        "ads": [{"ad_id": number % 5, "category": number % 3}],
    }


def line(user_key: str, **event: Any) -> str:
    """One line for kcat."""
    return f"{user_key}|{orjson.dumps({'user_key': user_key, **event}).decode()}"


def bad_clicks(user: str, key: str, ts_ms: int) -> dict[str, str]:
    """For each reason a line that is put aside for it."""
    return {
        "malformed": f'{user}|{{"impression_id": "{key}", "ts_ms": ',
        "schema": line(user, impression_id=key, ts_ms="yesterday"),
        "unknown_impression": line(user, impression_id="4711", ts_ms=ts_ms),
    }


async def assert_put_aside(broker: Broker, bad: dict[str, str]) -> None:
    """Each bad line lies among the dead letters under its reason, with its bytes."""
    letters = [msgspec.msgpack.decode(value, type=DeadLetter) for value in await values(broker, DEADLETTER)]
    assert sorted(letter.reason for letter in letters) == sorted(bad)
    sent = {reason: text.split("|", 1)[1].encode() for reason, text in bad.items()}
    payloads = {letter.reason: letter.payload for letter in letters}
    assert payloads["malformed"] == sent["malformed"]
    assert payloads["schema"] == sent["schema"]
    assert orjson.loads(payloads["unknown_impression"])["impression_id"] == "4711"


def assert_counted(metrics: Mapping[str, float], bad: dict[str, str], clicks: int) -> None:
    """The worker's counters say what it did."""
    for reason in bad:
        name = f'millstream_dead_letters_total{{reason="{reason}",topic="{CLICKS}"}}'
        assert metrics[name] == 1, name
    assert metrics['millstream_join_rows_total{outcome="duplicate_clicks"}'] == 1
    assert metrics['millstream_join_rows_total{outcome="clicks"}'] == clicks
    assert metrics["millstream_learned_rows_total"] == REQUESTS + clicks
    assert metrics['millstream_examples_total{kind="exposure"}'] == REQUESTS
    assert metrics['millstream_examples_total{kind="click"}'] == clicks


async def test_events_of_kcat_are_joined_and_learned_and_bad_ones_end_where_they_belong(
    kafka_topics: TestTopics, redis_url: str, librdkafka: dict[str, str], tmp_path: Path
) -> None:
    """JSON lines of kcat become examples and new versions; each kind of bad line has its reason and its counter."""
    kcat_program()
    base_snapshot(tmp_path / "snapshots")
    environment = {
        **kafka_topics.environment(redis_url),
        "MILLSTREAM_DISPLAY_HORIZON_S": str(HORIZON_MS // 1000),
        "MILLSTREAM_LEARN_BATCH_ROWS": "8",
    }
    broker = await find_broker(kafka_topics.settings(redis_url))
    impressions, clicks = kafka_topics.name(IMPRESSIONS), kafka_topics.name(CLICKS)
    async with (
        worker(environment, tmp_path / "snapshots", tmp_path / "worker.log") as running,
        serving(environment, tmp_path / "snapshots", tmp_path / "serving.log", spec=SPEC.name, clock="log") as http,
    ):
        scored = await post(http, "/v1/score", {"requests": [request(n) for n in range(1, REQUESTS + 1)]})
        before = [result["logit"][0] for result in scored["results"]]
        shown = [(r["user_key"], r["impression_ids"][0]) for r in scored["results"]]
        at = [START_MS + n * 1_000 for n in range(1, REQUESTS + 1)]
        await kcat(
            librdkafka, broker.bootstrap, impressions,
            [line(user, impression_id=key, ts_ms=t, position=0) for (user, key), t in zip(shown, at, strict=True)],
        )  # fmt: skip
        clicked = range(0, REQUESTS, 3)
        good = [line(shown[n][0], impression_id=shown[n][1], ts_ms=at[n] + 900) for n in clicked]
        bad = bad_clicks(*shown[0], at[0] + 500)
        await kcat(librdkafka, broker.bootstrap, clicks, [*good, good[0], *bad.values()])

        end = START_MS + REQUESTS * 1_000 + 3 * HORIZON_MS
        for partition in range(broker.partitions):
            for topic in (impressions, clicks):
                await kcat(librdkafka, broker.bootstrap, topic, [f'|{{"watermark_ms": {end}}}'], "-p", str(partition))
        await post(http, "/v1/score", {"requests": [], "watermark_ms": end})

        async def applied() -> bool:
            answer = await post(http, "/v1/score", {"requests": []})
            return int(answer["applied_ms"]) >= end - 1_000

        await until(applied, "serving has applied everything")
        examples = await examples_of(broker)
        found = {kind: sorted(examples.impression_id[examples.kind == kind].tolist()) for kind in (EXPOSURE, CLICK)}
        assert found == {
            EXPOSURE: sorted(int(key) for _, key in shown),
            CLICK: sorted(int(shown[n][1]) for n in clicked),
        }

        again = await post(http, "/v1/score", {"requests": [request(n) for n in range(1, REQUESTS + 1)]})
        assert again["model_version"] >= REQUESTS // 8
        assert [result["logit"][0] for result in again["results"]] != before

        await assert_put_aside(broker, bad)
        assert_counted(await running.metrics(), bad, len(clicked))
