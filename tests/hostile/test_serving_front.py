"""The front of serving under hostile peers: it answers, stays within its bounds, and says what it refuses."""

from __future__ import annotations

import asyncio
import gzip
import signal
import time
import urllib.request
import uuid
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from stream.embedded.broker import EmbeddedBroker
from stream.embedded.process import LOOPBACK, free_port
from stream.kafka.admin import delete_topics, ensure_topics
from stream.records.topics import SERVED, topic_table
from stream.records.wire import ServedRecord
from tests.brokers import Broker
from tests.chaos.proxy import Proxy
from tests.hostile.serving_program import JSON, ServingProgram, rest, said, serving

pytestmark = [pytest.mark.timeout(120), pytest.mark.e2e]

PARTITIONS = 2
ONE = {"user": {"user_id": 1}, "ads": [{"ad_id": 1}]}
TIMEOUTS = {"HEADER": "1", "BODY": "1.5", "ANSWER": "1", "KEEPALIVE": "2"}
POST = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF = {
    "a silent socket": b"",
    "half a request line": b"POST /v1/ra",
    "half a header": POST + b"X-Half: ",
    "half a body": POST + b'Content-Length: 500\r\n\r\n{"user',
    "half a chunk": POST + b'Transfer-Encoding: chunked\r\n\r\n40\r\n{"user',
    "idle after a call": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "idle after a bad call": POST + b"Content-Length: 1\r\n\r\n{",
}


def bomb_of(window_bits: int) -> bytes:
    """2 GiB of zeros, compressed: a block between two full flushes may be repeated."""
    stream = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    head = stream.compress(b"0") + stream.flush(zlib.Z_FULL_FLUSH)
    return head + (stream.compress(bytes(32 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)) * 64


def probed(port: int) -> float:
    """Seconds until /readyz has answered; beside the event loop, whose own delays are nobody's."""
    began = time.monotonic()
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=10) as answer:
        assert answer.status == 200
    return time.monotonic() - began


@pytest.fixture(scope="module")
async def redis_way(redis_server: str) -> AsyncIterator[Proxy]:
    """A way to Redis that can be cut."""
    async with Proxy(free_port(), redis_server.removeprefix("unix://")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
async def topics(broker: Broker) -> AsyncIterator[dict[str, str]]:
    """Topics of this module, as an environment."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    table = topic_table(PARTITIONS, prefix=prefix)
    await ensure_topics(broker.bootstrap, table)
    yield {
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
        "MILLSTREAM_PARTITIONS": str(PARTITIONS),
        "MILLSTREAM_TOPIC_PREFIX": prefix,
    }
    await delete_topics(broker.bootstrap, table)


@pytest.fixture(scope="module")
async def front(
    topics: dict[str, str], redis_way: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServingProgram]:
    """One program for all tests, with 96 descriptors and short timeouts."""
    environment = {
        **topics,
        "REDIS_URL": f"redis://{LOOPBACK}:{redis_way.port}/0",
        **{f"MILLSTREAM_{name}_TIMEOUT_S": value for name, value in TIMEOUTS.items()},
    }
    async with serving(environment, tmp_path_factory.mktemp("front"), descriptors=96) as program:
        yield program


async def test_peers_that_stop_halfway_are_closed_and_never_keep_a_probe_out(front: ServingProgram) -> None:
    """Seventy of them hold all places that 96 descriptors leave: both ports answer meanwhile, and in time all go."""
    ends = [await said(front.port, head) for head in [*HALF.values()] * 10]
    began = time.monotonic()
    for port in (front.port, front.probe_port):
        for path in ("/livez", "/readyz", "/metrics"):
            async with aiohttp.ClientSession() as http, http.get(f"http://{LOOPBACK}:{port}{path}") as answer:
                assert answer.status == 200
    assert (await front.post(ONE))[0] == 200
    assert time.monotonic() - began < 3.0
    async with asyncio.timeout(10):
        await asyncio.gather(*(rest(reader) for reader, _ in ends))
    assert await front.metric('millstream_serving_closed_connections_total{reason="no_place"}') > 0
    assert await front.metric('millstream_serving_closed_connections_total{reason="no_head"}') > 0
    assert await front.metric('millstream_serving_refused_calls_total{reason="slow_body"}') > 0


async def test_probes_are_let_in_while_others_come_without_end(front: ServingProgram) -> None:
    """A storm of silent connections takes each other's places, not those of callers that say something."""
    storm: list[asyncio.StreamWriter] = []

    async def blow() -> None:
        while True:
            storm.append((await said(front.port, b""))[1])

    blowing = [asyncio.create_task(blow()) for _ in range(2)]
    try:
        for _ in range(3):
            async with aiohttp.ClientSession() as http, http.get(f"http://{LOOPBACK}:{front.port}/readyz") as answer:
                assert answer.status == 200
    finally:
        for task in blowing:
            task.cancel()
        await asyncio.gather(*blowing, return_exceptions=True)
        for writer in storm:
            writer.transport.abort()


async def test_an_answer_that_nobody_reads_is_dropped_with_its_connection(front: ServingProgram) -> None:
    """A peer that asks and asks without reading gets no more answers than the socket takes."""
    ads = [{"ad_id": n, "note": "x" * 2000} for n in range(2000)]
    body = orjson.dumps({"user": {"user_id": 1}, "ads": ads})
    before, began = front.resident_bytes(), time.monotonic()
    call = POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    _, writer = await said(front.port, call * 3)
    async with asyncio.timeout(15):
        while await front.metric('millstream_serving_closed_connections_total{reason="unread"}') < 1:
            await asyncio.sleep(0.1)
    writer.transport.abort()
    assert front.resident_bytes() - before < 150 << 20, time.monotonic() - began


async def test_bombs_are_refused_while_they_inflate_and_others_are_answered(front: ServingProgram) -> None:
    """2 MiB that become 2 GiB, as gzip, deflate, chunked and in members: 413 and closed, little memory, no stall."""
    zeros, packed = bomb_of(31), bomb_of(15)
    before, slowest, bombing = front.resident_bytes(), 0.0, True

    async def beside() -> None:
        nonlocal slowest
        while bombing:
            began = time.monotonic()
            assert (await front.post(ONE))[0] == 200
            slowest = max(slowest, time.monotonic() - began)

    async def bomb(body: Any, encoding: str) -> int:
        headers = {**JSON, "Content-Encoding": encoding}
        async with front.http.post("/v1/score", data=body, headers=headers) as answer:
            assert answer.headers.get("Connection") == "close"
            return answer.status

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(zeros), 10_000):
            yield zeros[at : at + 10_000]

    other = asyncio.create_task(beside())
    bombs = (bomb(zeros, "gzip"), bomb(zeros, "gzip"), bomb(packed, "deflate"), bomb(chunks(), "gzip"))
    statuses = await asyncio.gather(*bombs)
    bombing = False
    await other
    assert set(statuses) == {413}
    assert slowest < 1.0
    assert front.resident_bytes() - before < 150 << 20


async def test_small_bodies_that_are_large_calls_are_refused_before_they_are_made(front: ServingProgram) -> None:
    """The product of two limits, and values in values: a few kilobytes ask for gigabytes."""
    ads = b"[" + b",".join([b"{}"] * 2000) + b"]"
    product = b'{"requests":[' + b",".join([b'{"user":{},"ads":' + ads + b"}"] * 1000) + b"]}"
    lists = b'{"user":{},"ads":[{"x":[' + b"[]," * 5_000_000 + b"[]]}]}"
    numbers = b'{"user":{},"ads":[{"x":[' + b"1," * 8_000_000 + b"1]}]}"
    just_over: dict[str, Any] = {"requests": [{"user": {}, "ads": [{}] * 2000}] * 11}
    before = front.resident_bytes()
    for path, body in (("/v1/score", product), ("/v1/rank", lists), ("/v1/rank", numbers)):
        began = time.monotonic()
        status, answer = await front.post(gzip.compress(body, 1), path, **{"Content-Encoding": "gzip"})
        assert (status, "in several calls" in answer["error"]) == (400, True)
        assert time.monotonic() - began < 2.0
    status, answer = await front.post(just_over, "/v1/score")
    assert (status, "22000 ads" in answer["error"]) == (400, True)
    assert front.resident_bytes() - before < 150 << 20


async def test_a_call_at_the_bound_is_answered_whole_and_holds_up_nobody(front: ServingProgram) -> None:
    """20,000 ads in slices: small calls beside it are answered between them."""
    ads = [{"ad_id": n, "campaign_id": n % 50, "category": n % 7} for n in range(2000)]
    large = {"requests": [{"user": {"user_id": n}, "ads": ads} for n in range(10)]}
    asked = asyncio.create_task(front.post(large, "/v1/score"))
    slowest = 0.0
    while not asked.done():
        began = time.monotonic()
        assert (await front.post(ONE))[0] == 200
        slowest = max(slowest, time.monotonic() - began)
    status, answer = await asked
    assert (status, [len(one["p"]) for one in answer["results"]]) == (200, [2000] * 10)
    assert len({i for one in answer["results"] for i in one["impression_ids"]}) == 20_000
    assert slowest < 1.0, slowest


async def test_too_many_calls_at_once_are_shed_and_lose_nobody_elses_rows(front: ServingProgram) -> None:
    """Far more than is worked off: 503 with Retry-After for the rest, probes at once, no served record dropped."""
    body = orjson.dumps({"user": {"user_id": 1}, "ads": [{"ad_id": n, "campaign_id": n % 50} for n in range(2000)]})
    statuses: list[int] = []
    waited: list[float] = []
    until = time.monotonic() + 4

    async def hammer(http: aiohttp.ClientSession) -> None:
        while time.monotonic() < until:
            try:
                async with http.post("/v1/rank", data=body, headers=JSON) as answer:
                    statuses.append(answer.status)
                    assert answer.status == 200 or answer.headers["Retry-After"] == "1"
                    await answer.read()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)  # there are more connections than descriptors

    connector = aiohttp.TCPConnector(limit=100)
    async with (
        aiohttp.ClientSession(f"http://{LOOPBACK}:{front.port}", connector=connector) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(100):
            group.create_task(hammer(http))
        while time.monotonic() < until:
            waited += await asyncio.gather(
                *(asyncio.to_thread(probed, port) for port in (front.port, front.probe_port))
            )
    assert set(statuses) == {200, 503}
    assert max(waited) < 2.0, waited
    assert await front.metric("millstream_served_records_dropped_total") == 0
    assert await front.metric('millstream_serving_refused_calls_total{reason="overload"}') >= statuses.count(503)


def deep(levels: int) -> bytes:
    """An ad that holds lists in lists."""
    return b'{"user":{},"ads":[{"x":' + b"[" * levels + b"]" * levels + b"}]}"


LONG = "x" * 1_000_000
FAULTS: dict[str, tuple[bytes | dict[str, Any], dict[str, str]]] = {
    "lists 5,000 deep": (deep(5_000), {}),
    "lists 900 deep, which can be read and not written": (deep(900), {}),
    "a bid of 400 digits": (b'{"user":{},"ads":[{"bid":1' + b"0" * 400 + b"}]}", {}),
    "a bid of 1 MB of text": (ONE | {"ads": [{"bid": LONG}]}, {}),
    "a field of 1 MB of text": (ONE | {LONG: 1}, {}),
    "a user id of lists 900 deep": (b'{"user":{"user_id":' + b"[" * 900 + b"]" * 900 + b'},"ads":[{}]}', {}),
    "a user id beyond 64 bits": (ONE | {"user": {"user_id": 2**64}}, {}),
    "a negative user id beyond 64 bits": (ONE | {"user": {"user_id": -(2**63) - 1}}, {}),
    "ads that collide in a dict": (ONE | {"ads": [{"ad_id": k * (2**61 - 1) + 7} for k in range(1, 2000)]}, {}),
    "an integer beyond 64 bits that goes back": (ONE | {"ads": [{"ad_id": 1, "note": 2**70}]}, {}),
    "a time beyond 64 bits": (ONE | {"ts_ms": 10**400}, {}),
    "a top_k beyond 64 bits": (ONE | {"top_k": 10**30}, {}),
    "half a surrogate": (b'{"user":{},"ads":[{"note":"\\ud800"}]}', {}),
    "a BOM": (b"\xef\xbb\xbf" + orjson.dumps(ONE), {}),
    "plain text that says gzip": (orjson.dumps(ONE), {"Content-Encoding": "gzip"}),
    "half a gzip": (gzip.compress(orjson.dumps(ONE))[:-12], {"Content-Encoding": "gzip"}),
    "gzip and more": (gzip.compress(orjson.dumps(ONE)) + b"more", {"Content-Encoding": "gzip"}),
    "a thousand members": (gzip.compress(b"") * 1000, {"Content-Encoding": "gzip"}),
    "plain text that says deflate": (orjson.dumps(ONE), {"Content-Encoding": "deflate"}),
    "brotli": (orjson.dumps(ONE), {"Content-Encoding": "br"}),
    "gzip twice": (gzip.compress(orjson.dumps(ONE)), {"Content-Encoding": "gzip, gzip"}),
    "text": (orjson.dumps(ONE), {"Content-Type": "text/plain"}),
    "a form": (orjson.dumps(ONE), {"Content-Type": "application/x-www-form-urlencoded"}),
    "another site": (ONE, {"Origin": "https://evil.example"}),
    "no site": (ONE, {"Origin": "null"}),
    "another name": (ONE, {"Host": "evil.example:8080"}),
}


async def test_a_callers_fault_is_answered_as_one_in_a_line_and_nothing_is_logged_as_served(
    front: ServingProgram,
) -> None:
    """A 4xx that shows 80 characters at most of what came; no row, no 5xx, no traceback, and the server goes on."""
    rows = await front.metric("millstream_serving_rows_total")
    for name, (body, headers) in FAULTS.items():
        began = time.monotonic()
        status, answer = await front.post(body, **headers)
        assert 400 <= status < 500, (name, status, answer)
        assert len(answer["error"]) < 600, (name, answer)
        assert time.monotonic() - began < 1.0, name
    assert (await front.post(ONE))[0] == 200
    assert await front.metric("millstream_serving_rows_total") == rows + 1
    assert await front.metric('millstream_serving_requests_total{route="/v1/rank",status="5xx"}') == await front.metric(
        'millstream_serving_refused_calls_total{reason="overload"}'
    )
    assert "Traceback" not in front.log.read_text()


async def test_what_is_no_http_is_closed_and_counted(front: ServingProgram) -> None:
    """TLS, garbage, a head without end, a chunk that lies: an answer or none, and no line of a log for each."""
    before = await front.metric('millstream_serving_refused_calls_total{reason="http"}')
    heads = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: 1\r\n" % n for n in range(1000)) + b"\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
    for head in heads:
        reader, writer = await said(front.port, head)
        assert b" 400 " in (await rest(reader))[:20]
        writer.close()
    assert await front.metric('millstream_serving_refused_calls_total{reason="http"}') > before
    reader, writer = await said(front.port, POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n")
    assert b" 400 " in (await rest(reader))[:20]
    assert "Traceback" not in front.log.read_text()


async def test_a_misspelt_name_is_named_in_the_answer_and_counted(front: ServingProgram) -> None:
    """The user is not quietly nobody; names that are like none are the client's own."""
    asked = {"user": {"userid": 1, "Age_Group": 3, "loyalty": 2}, "ads": [{"adid": 1, "bid": 1}]}
    status, answer = await front.post(asked)
    assert (status, answer["misspelt_fields"]) == (
        200,
        {
            "user.userid": "user.user_id",
            "user.Age_Group": "user.age_group",
            "ad.adid": "ad.ad_id",
        },
    )
    assert await front.metric('millstream_serving_misspelt_fields_total{field="user.user_id"}') == 1
    status, answer = await front.post(ONE | {"contxt": {}})
    assert (status, "context may be meant" in answer["error"]) == (400, True)


async def test_answers_say_while_redis_is_away_that_they_lack_features(front: ServingProgram, redis_way: Proxy) -> None:
    """200 with `degraded`, ready all the while; no longer once Redis is back."""
    assert (await front.post(ONE))[1]["degraded"] == []
    await redis_way.stop()
    try:
        status, answer = await front.post(ONE)
        assert (status, answer["degraded"]) == (200, ["session_store"])
        async with front.http.get("/readyz") as ready:
            state = await ready.json()
        assert (ready.status, list(state["degraded"])) == (200, ["session_store"])
    finally:
        await redis_way.start()
    async with asyncio.timeout(10):
        while (await front.post(ONE))[1]["degraded"]:
            await asyncio.sleep(0.05)
    assert await front.metric('millstream_serving_degraded{reason="session_store"}') == 0


async def test_a_hang_up_ends_it_like_a_termination_with_all_rows_handed_on(
    topics: dict[str, str], redis_server: str, tmp_path: Path
) -> None:
    """SIGHUP: exit 0, and what was answered just before lies on the served topic."""
    async with serving({**topics, "REDIS_URL": redis_server}, tmp_path) as program:
        _, answer = await program.post(ONE)
        assert await program.stop(signal.SIGHUP) == 0
        assert int(answer["ranked"][0]["impression_id"]) in await served_ids(topics)


async def test_it_ends_in_order_and_in_time_with_its_broker_gone(redis_server: str, tmp_path: Path) -> None:
    """Exit 0 within ten seconds: what could not be handed on is said, and nothing else is waited for."""
    broker = EmbeddedBroker()
    await broker.start()
    try:
        await ensure_topics(broker.bootstrap, topic_table(PARTITIONS))
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
            "REDIS_URL": redis_server,
            "MILLSTREAM_PARTITIONS": str(PARTITIONS),
        }
        async with serving(environment, tmp_path) as program:
            await broker.stop()
            assert (await program.post(ONE))[0] == 200
            async with asyncio.timeout(10):
                assert await program.stop() == 0
            assert "served records lost at shutdown" in program.log.read_text()
            assert "Traceback" not in program.log.read_text()
    finally:
        await broker.stop()


async def served_ids(topics: dict[str, str]) -> set[int]:
    """The impression ids on the served topic."""
    name = topics["MILLSTREAM_TOPIC_PREFIX"] + SERVED
    consumer = AIOKafkaConsumer(bootstrap_servers=topics["KAFKA_BOOTSTRAP_SERVERS"], fetch_max_wait_ms=20)
    await consumer.start()
    try:
        partitions = [TopicPartition(name, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: set[int] = set()
        for tp in partitions:
            consumer.seek(tp, 0)
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    arrays = msgspec.msgpack.decode(record.value, type=ServedRecord).arrays()
                    found.update(arrays["impression_id"].tolist())
        return found
    finally:
        await consumer.stop()
