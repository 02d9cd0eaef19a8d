"""Serving over HTTP, on a real broker and a real Redis."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from aiokafka.errors import KafkaConnectionError  # type: ignore[import-untyped]

from calibration.merged import map_of
from serving.cohorts import WINDOWS_OF, CohortFigures
from serving.metrics import ServingMetrics
from serving.server import ServingServer, wall_ms
from serving.settings import ServingSettings
from stream.records.partition import partition_of
from stream.records.served import decode_served
from stream.records.topics import CALIBRATION, WEIGHTS
from stream.sessions.shared_feed import SharedCounterFeed
from tests.learners.small_spec import SMALL
from tests.serving import test_calibrator as calibrated
from tests.serving.conftest import Start
from tests.serving.trainer import FIRST_VERSION, NOW_MS, TWO_HEADS, Trainer, encoded, request, rows_of, wire

pytestmark = [pytest.mark.timeout(60), pytest.mark.e2e]


def flat(answer: dict[str, Any], key: str) -> list[Any]:
    """A column of all results, one after the other."""
    return [value for result in answer["results"] for value in result[key]]


async def test_a_score_call_answers_in_request_order_and_logs_each_row_on_its_users_partition(start: Start) -> None:
    """Each request's rows come back in its ads' order, and lie on the served topic under its user's partition."""
    running = await start()
    requests = [request(user, range(1, 2 + user % 3), request_id=user) for user in range(1, 21)]
    status, answer = await running.post("/v1/score", {"requests": [wire(r) for r in requests]})

    assert status == 200
    assert [r["request_id"] for r in answer["results"]] == [str(r.request_id) for r in requests]
    assert [len(r["p"]) for r in answer["results"]] == [len(r.ads) for r in requests]
    expected = running.trainer.model.predict_many(rows_of(requests))
    np.testing.assert_array_equal(np.array(flat(answer, "logit"), np.float32), expected)
    assert answer["model_version"] == FIRST_VERSION

    logged = await running.served(rows=len(expected))
    answered = {i: p for r in answer["results"] for i, p in zip(r["impression_ids"], r["p"], strict=True)}
    assert len(answered) == len(expected)
    for partition, records in logged.items():
        for record in records:
            rows = decode_served(record.encode(), SMALL)
            assert (partition_of(rows.user_key, running.topics.partitions) == partition).all()
            assert {str(i): np.float32(p) for i, p in zip(rows.impression_id, rows.p, strict=True)} == {
                str(i): np.float32(answered.pop(str(i))) for i in rows.impression_id
            }
    assert not answered


async def test_rank_orders_by_p_times_bid_and_logs_only_what_it_answered(start: Start) -> None:
    """The answer descends in p x bid; with top_k the other candidates were not served and are not logged."""
    running = await start()
    asked = wire(request(3, range(1, 41)), top_k=5)
    for ad in asked["ads"]:
        ad["bid"] = 1.0 + ad["ad_id"] % 7
    status, answer = await running.post("/v1/rank", asked)

    assert status == 200
    values = [entry["p"] * entry["bid"] for entry in answer["ranked"]]
    assert values == sorted(values, reverse=True)
    assert [entry["position"] for entry in answer["ranked"]] == list(range(5))
    assert all(entry["ad"] == asked["ads"][entry["index"]] for entry in answer["ranked"])
    logged = await running.served(rows=5)
    ids = [str(i) for records in logged.values() for r in records for i in r.arrays()["impression_id"].tolist()]
    assert sorted(ids) == sorted(entry["impression_id"] for entry in answer["ranked"])


async def test_conversions_are_answered_logged_and_ranked_by_what_they_pay(start: Start) -> None:
    """Bids per click and values per conversion in one request; both probabilities of what was answered are logged."""
    running = await start(model=TWO_HEADS)
    asked = wire(request(3, range(1, 41)), top_k=30)
    for ad in asked["ads"]:
        if ad["ad_id"] % 3 != 1:
            ad["bid"] = 1.0 + ad["ad_id"] % 7
        if ad["ad_id"] % 3 != 2:
            ad["value"] = 20.0
    status, answer = await running.post("/v1/rank", asked)
    assert status == 200

    best = answer["ranked"]
    pays = [one["p"] * (one["bid"] + one["value"] * one["p_conversion"]) for one in best]
    assert pays == sorted(pays, reverse=True)
    np.testing.assert_allclose(pays, [one["expected_value"] for one in best], rtol=1e-6)
    assert {(one["bid"] > 0, one["value"] > 0) for one in best} == {(True, True), (True, False), (False, True)}
    expected = running.trainer.model.predict_heads(rows_of([request(3, range(1, 41))]))
    for one in best:
        assert np.float32(one["logit"]) == expected[one["index"], 0]
        np.testing.assert_allclose(one["p_conversion"], 1 / (1 + np.exp(-expected[one["index"], 1])), rtol=1e-5)

    logged = [record for records in (await running.served(rows=30)).values() for record in records if record.rows]
    columns = [record.arrays() for record in logged]
    assert {
        str(i): p for c in columns for i, p in zip(c["impression_id"].tolist(), c["conversion_p"].tolist(), strict=True)
    } == {one["impression_id"]: float(np.float32(one["p_conversion"])) for one in best}

    status, answer = await running.post("/v1/score", {"requests": [wire(request(3, range(1, 41)))]})
    np.testing.assert_array_equal(np.array(flat(answer, "conversion_logit"), np.float32), expected[:, 1])


async def test_without_a_conversion_head_its_probability_is_null(start: Start) -> None:
    """In both answers; ads that pay for clicks are ranked as ever."""
    running = await start()
    _, answer = await running.post("/v1/score", {"requests": [wire(request(3, [1, 2]))]})
    assert flat(answer, "p_conversion") == flat(answer, "conversion_logit") == [None, None]
    status, answer = await running.post("/v1/rank", wire(request(3, [1, 2])))
    assert (status, [one["p_conversion"] for one in answer["ranked"]]) == (200, [None, None])


async def test_every_answer_is_wholly_of_the_version_it_names_while_deltas_stream_in(start: Start) -> None:
    """Concurrent calls during forty swaps: each call's logits are those of its reported version, bit for bit."""
    running = await start()
    requests = [request(user, range(1, 6)) for user in range(1, 9)]
    body = {"requests": [wire(r) for r in requests]}
    seen: list[tuple[int, list[float]]] = []
    swapped = asyncio.Event()

    async def ask() -> None:
        while not swapped.is_set():
            _, answer = await running.post("/v1/score", body)
            seen.append((answer["model_version"], flat(answer, "logit")))

    askers = [asyncio.create_task(ask()) for _ in range(4)]
    for _ in range(40):
        await running.learn(max_part_bytes=3_000)
    await running.until(lambda: running.server.model.version == running.trainer.version)
    swapped.set()
    await asyncio.gather(*askers)

    again = Trainer()
    expected = {again.version: again.model.predict_many(rows_of(requests))}
    for _ in range(40):
        again.step()
        expected[again.version] = again.model.predict_many(rows_of(requests))
    assert len({version for version, _ in seen}) > 5
    for version, logits in seen:
        np.testing.assert_array_equal(np.array(logits, np.float32), expected[version])


async def test_a_lost_delta_makes_serving_reload_the_newest_snapshot_and_go_on_from_there(start: Start) -> None:
    """Version 12 never arrives: serving keeps 11, says so, then goes on bit-equal from the snapshot of 13."""
    running = await start()
    model = running.server.model
    await running.learn()
    await running.until(lambda: model.version == FIRST_VERSION + 1)
    running.trainer.step()  # lost
    await running.learn()
    await running.until(lambda: running.server.weights.rejection is not None)
    assert model.version in (FIRST_VERSION, FIRST_VERSION + 1)
    status, answer = await running.get("/readyz")
    assert (status, "weights_gap" in answer["degraded"]) == (200, True)
    running.trainer.snapshot(running.snapshots)
    last = await running.learn()
    await running.until(lambda: model.version == last)

    _, answer = await running.post("/v1/score", {"requests": [wire(request(5, range(1, 9)))]})
    expected = running.trainer.model.predict_many(rows_of([request(5, range(1, 9))]))
    np.testing.assert_array_equal(np.array(answer["results"][0]["logit"], np.float32), expected)
    await running.until(lambda: not running.server.degraded())
    assert model.gaps >= 1


async def test_start_skips_what_the_snapshot_holds_and_takes_what_came_after(start: Start) -> None:
    """Deltas older than the snapshot change nothing, newer ones are applied: the model ends as the trainer's."""
    running = await start()
    for _ in range(5):
        await running.learn()
    running.trainer.snapshot(running.snapshots)
    for _ in range(3):
        last = await running.learn()
    second = await start_again(running)
    try:
        await running.until(lambda: second.model.version == last)
        assert second.model.snapshot_version == last - 3
        assert second.model.gaps == 0
        rows = rows_of([request(2, range(1, 9))])
        np.testing.assert_array_equal(second.model.predict(rows).click, running.trainer.model.predict_many(rows))
    finally:
        await second.weights.stop()


async def start_again(running: Any) -> Any:
    """A second server's model and weights follower, on the same snapshots and topics."""
    second = ServingServer(running.options, ServingSettings(), ServingMetrics())
    await second.weights.start()
    return second


async def test_the_map_of_the_calibration_topic_changes_p_and_its_version(start: Start) -> None:
    """States of two partitions, of a model that is too sure: p moves, the version is the sum of theirs."""
    running = await start()
    body = {"requests": [wire(request(5, range(1, 9)))]}
    _, before = await running.post("/v1/score", body)
    state = calibrated.state_of(1, SMALL.slice_plan)
    for partition in (0, 2):
        await running.publish(CALIBRATION, encoded(calibrated.record(partition, 3, state, watermark_ms=NOW_MS - 5)))
    await running.until(lambda: running.server.calibrator.map.version == 6)
    _, after = await running.post("/v1/score", body)

    assert after["map_version"] == 6
    assert after["applied_ms"] == NOW_MS - 5
    assert before["results"][0]["logit"] == after["results"][0]["logit"]
    logit = np.array(flat(after, "logit"), np.float32)
    expected = map_of([state, state]).apply(logit)
    np.testing.assert_array_equal(np.array(flat(after, "p"), np.float32), expected)
    assert not np.array_equal(flat(after, "p"), flat(before, "p"))


async def test_without_redis_requests_are_scored_with_empty_features_and_counted(start: Start) -> None:
    """A session store that is away costs features, never an answer."""
    running = await start(redis="redis://127.0.0.1:1/0")
    status, answer = await running.post("/v1/score", {"requests": [wire(request(4, [1, 2]))]})

    assert status == 200
    expected = running.trainer.model.predict_many(rows_of([request(4, [1, 2])]))
    np.testing.assert_array_equal(np.array(answer["results"][0]["logit"], np.float32), expected)
    assert "millstream_feature_read_failures_total 1.0" in await page(running, "/metrics")
    assert (await running.get("/v1/status"))[1]["session_store"] == "away"


async def page(running: Any, path: str) -> str:
    """The text of a page."""
    async with running.http.get(path) as response:
        assert response.status == 200
        return str(await response.text())


async def test_a_watermark_reaches_every_partition_of_the_served_topic(start: Start) -> None:
    """An empty score call with a watermark writes a record without rows to all partitions, after the rows before it."""
    running = await start()
    await running.post("/v1/score", {"requests": [wire(request(1)), wire(request(2))]})
    status, answer = await running.post("/v1/score", {"requests": [], "watermark_ms": NOW_MS + 5000})
    assert (status, answer["results"]) == (200, [])
    await running.server.served_log.flush(5)
    logged = await running.served(rows=2)

    assert {records[-1].watermark_ms for records in logged.values()} == {NOW_MS + 5000}
    assert {records[-1].rows for records in logged.values()} == {0}


async def test_on_the_wall_clock_partitions_hear_the_time_and_requests_get_it(start: Start) -> None:
    """Heartbeats flow without any request, and a request without ts_ms is served at now."""
    running = await start(clock="wall", settings=ServingSettings(heartbeat_s=0.05))
    asked = wire(request(1))
    del asked["ts_ms"]
    assert (await running.post("/v1/rank", asked))[0] == 200
    logged = await running.served(rows=1)
    ts_ms = [int(r.arrays()["ts_ms"][0]) for records in logged.values() for r in records if r.rows]
    assert abs(ts_ms[0] - NOW_MS) > 86_400_000
    status, refused = await running.post("/v1/score", {"requests": [], "watermark_ms": 1})
    assert status == 400
    assert "--clock log" in refused["error"]


async def test_a_silent_learner_makes_answers_degraded_and_takes_no_server_out(start: Start) -> None:
    """Every replica hears the same silence, and all of them answer well: probe, answer and metrics say it."""
    running = await start(clock="wall", settings=ServingSettings(fresh_within_s=0.001))
    await asyncio.sleep(0.01)
    status, answer = await running.get("/readyz")
    assert (status, answer["ready"]) == (200, True)
    assert "silent" in answer["degraded"]["learner_silent"]
    assert (await running.get("/healthz"))[0] == 200
    body = wire(request(1))
    del body["ts_ms"]
    assert (await running.post("/v1/rank", body))[1]["degraded"] == ["learner_silent"]
    assert 'millstream_serving_degraded{reason="learner_silent"} 1.0' in await page(running, "/metrics")


async def test_freshness_counts_from_the_click_to_the_first_prediction_that_knows_it(start: Start) -> None:
    """Clicks of a version are observed at the first score call after its swap, once."""
    running = await start()
    version = await running.learn(clicks_produced_ms=[wall_ms() - 3_000, wall_ms() - 1_000])
    await running.until(lambda: running.server.model.version == version)
    assert (await running.get("/v1/status"))[1]["freshness"]["count"] == 0
    for _ in range(2):
        await running.post("/v1/score", {"requests": [wire(request(1))]})
    _, status = await running.get("/v1/status")

    assert status["freshness"]["count"] == 2
    assert 1.0 <= status["freshness"]["p50"] < 3.0 <= status["freshness"]["p99"]
    assert "millstream_serving_freshness_seconds_count 2.0" in await page(running, "/metrics")


async def test_weights_of_another_spec_are_refused_and_named_in_readiness(start: Start) -> None:
    """Both hashes stand in the reason; the model keeps answering as it was."""
    running = await start()
    (part,) = running.trainer.step()
    await running.publish(WEIGHTS, encoded(msgspec.structs.replace(part, spec_hash="0123456789abcdef")))
    await running.publish(WEIGHTS, b"\xc1 no record")
    await running.until(lambda: running.server.weights.rejection is not None)
    status, answer = await running.get("/readyz")
    assert (status, "weights_rejected" in answer["degraded"]) == (200, True)
    assert running.server.model.version == FIRST_VERSION
    text = await page(running, "/metrics")
    assert 'reason="spec"' in text
    assert (await running.post("/v1/score", {"requests": [wire(request(1))]}))[0] == 200


async def test_stopping_answers_calls_in_flight_and_loses_no_served_row(start: Start) -> None:
    """Every answer that a client got before the stop has its rows on the served topic."""
    running = await start()
    body = {"requests": [wire(request(user, range(1, 4))) for user in range(1, 5)]}
    answered: list[str] = []

    async def ask() -> None:
        while True:
            try:
                status, answer = await running.post("/v1/score", body)
            except aiohttp.ClientError:
                return  # the connection was closed between two calls
            assert status == 200
            answered.extend(flat(answer, "impression_ids"))

    askers = [asyncio.create_task(ask()) for _ in range(3)]
    await running.until(lambda: len(answered) > 100)
    await running.server.stop()
    await asyncio.gather(*askers)
    logged = await running.served(rows=len(answered))
    ids = {str(i) for rs in logged.values() for r in rs for i in r.arrays()["impression_id"].tolist()}
    assert set(answered) <= ids


BAD_BODIES: list[tuple[str, str, Any, str]] = [
    ("not JSON", "/v1/rank", b"{", "not JSON"),
    ("no UTF-8", "/v1/rank", b'{"user": {"user_id": "\xff"}, "ads": [{}]}', "not JSON"),
    ("no ads", "/v1/rank", wire(request(1, [])), "$.ads holds 0 ads"),
    ("too many ads", "/v1/rank", wire(request(1, range(2001))), "2001 ads"),
    ("missing user", "/v1/rank", {"ads": [{}]}, "user"),
    ("a list for a user", "/v1/rank", wire(request(1)) | {"user": []}, "$.user=[]"),
    ("an unknown key", "/v1/rank", wire(request(1), bids=[1]), "bids"),
    ("a time in words", "/v1/score", {"requests": [wire(request(1)) | {"ts_ms": "noon"}]}, "'noon'"),
    ("no time on the log's clock", "/v1/rank", wire(request(1)) | {"ts_ms": None}, "ts_ms is missing"),
    ("a time in seconds", "/v1/rank", wire(request(1)) | {"ts_ms": 1_700_000_000}, "ts_ms=1700000000"),
    ("a request id in words", "/v1/rank", wire(request(1)) | {"request_id": "abc"}, "'abc'"),
    ("request id 0", "/v1/rank", wire(request(1)) | {"request_id": 0}, "request_id"),
    ("a negative bid", "/v1/rank", wire(request(1)) | {"ads": [{"ad_id": 1, "bid": -1}]}, "bid=-1"),
    ("a bid beyond all money", "/v1/rank", wire(request(1)) | {"ads": [{"ad_id": 1, "bid": 1e300}]}, "bid=1e+300"),
    ("a negative value", "/v1/rank", wire(request(1)) | {"ads": [{"ad_id": 1, "value": -0.5}]}, "value=-0.5"),
    (
        "a value without a head",
        "/v1/rank",
        wire(request(1)) | {"ads": [{"ad_id": 1}, {"ad_id": 2, "value": 3}]},
        "$.ads[1].value=3 is paid for a conversion",
    ),
    ("a bid in words", "/v1/rank", wire(request(1)) | {"ads": [{"ad_id": 1, "bid": "1"}]}, "bid='1'"),
    ("top_k 0", "/v1/rank", wire(request(1), top_k=0), "top_k=0"),
    ("a value that has no id", "/v1/rank", wire(request(1)) | {"user": {"user_id": {"a": 1}}}, "user_id"),
    ("too many requests", "/v1/score", {"requests": [wire(request(1))] * 1001}, "1001 requests"),
    ("a watermark in seconds", "/v1/score", {"requests": [], "watermark_ms": 1_700_000_000}, "watermark_ms=1700000000"),
]


async def test_bad_input_is_answered_with_400_and_its_reason(start: Start) -> None:
    """The error names the place and the value; nothing is scored or logged."""
    running = await start()
    for name, path, body, expected in BAD_BODIES:
        status, answer = await running.post(path, body)
        assert (status, expected in answer["error"]) == (400, True), (name, status, answer)
    assert running.server.service.activity.rows == 0


async def test_the_page_needs_nothing_from_elsewhere(start: Start) -> None:
    """The live page and every file it names are served here."""
    running = await start()
    html = await page(running, "/")
    assert "http://" not in html
    assert "https://" not in html
    for name in re.findall(r'(?:src|href)="(?!data:)([^"]+)"', html):
        assert await page(running, "/" + name.lstrip("/"))


async def test_the_page_finds_all_that_it_shows_in_the_status(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of every head, maturity and window reach the status, the series and /metrics within a second."""
    running = await start(model=TWO_HEADS)
    heads, maturities = ("click", "conversion"), ("early", "mature")
    found = [
        CohortFigures(head, maturity, window, "all", "main", 1_000.0, 95.0, 100.0, 0.3, 0.9, 0.7)  # type: ignore[arg-type]
        for head in heads
        for maturity in maturities
        for window in WINDOWS_OF[head]
    ]
    monkeypatch.setattr(running.server.calibrator, "figures", lambda: found)
    await running.post("/v1/score", {"requests": [wire(request(1))]})
    await running.until(lambda: bool(running.server.figures))

    _, status = await running.get("/v1/status")
    assert status["heads"] == ["click", "conversion"]
    assert len(status["quality"]) == len(found)
    assert {one["observed_over_expected"] for one in status["quality"]} == {0.95}
    script = await page(running, "/page.js")
    drawn = set(re.findall(r'\["[^"\]]+", "(\w+)"\]', script))
    assert len(drawn) > 10
    assert drawn <= set(status["series"])
    assert 0 < status["series"]["click_predicted_mean"][-1] < 1
    assert 0 < status["series"]["conversion_predicted_mean"][-1] < 1
    metrics = await page(running, "/metrics")
    labels = 'head="conversion",maturity="mature",slice="all",variant="main",window="1d"'
    assert f"millstream_served_observed_over_expected_ratio{{{labels}}} 0.95" in metrics


async def test_a_background_task_that_dies_is_said_by_probe_and_answers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers go on, with series or shared counters that stand still, in every replica if the fault is Redis'."""
    running = await start()

    def broken(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(running.server.calibrator, "figures", broken)
    monkeypatch.setattr(SharedCounterFeed, "refresh", broken)
    await running.post("/v1/score", {"requests": [wire(request(1))]})  # in a replay its time makes a refresh due
    await running.until(
        lambda: (
            "shared counters" in running.server.degraded().get("task_ended", "")
            and "series" in running.server.degraded()["task_ended"]
        )
    )
    status, answer = await running.get("/readyz")
    assert status == 200
    assert "series" in answer["degraded"]["task_ended"]
    assert "shared counters" in answer["degraded"]["task_ended"]


async def test_a_promise_waits_for_rows_that_are_sent_again_and_is_not_forgotten(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come before them; a replay waits for it, so that the next call makes up for it."""
    running = await start()
    with monkeypatch.context() as patched:
        patched.setattr(type(running.server.served_log), "sends_out_of_order", True)
        await running.post("/v1/score", {"requests": [wire(request(1))], "watermark_ms": NOW_MS + 5000})
    await running.post("/v1/score", {"requests": [wire(request(2))]})
    await running.post("/v1/score", {"requests": []})
    await running.server.served_log.flush(5)
    logged = await running.served(rows=2)
    for records in logged.values():
        assert [record.watermark_ms for record in records if not record.rows] == [NOW_MS + 5000]


async def test_a_broker_that_stumbles_while_a_gap_is_filled_does_not_end_the_following(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next record shows the gap again, and the snapshot's place is looked up again."""
    running = await start()
    monkeypatch.setattr("serving.followers.RETRY_PAUSE_S", 0.01)
    works, calls = running.server.weights.position, []

    async def position(consumer: Any) -> int:
        calls.append(consumer)
        if len(calls) == 1:
            raise KafkaConnectionError
        return int(await works(consumer))

    monkeypatch.setattr(running.server.weights, "position", position)
    running.trainer.step()  # lost
    running.trainer.snapshot(running.snapshots)
    await running.learn()
    await running.until(lambda: len(calls) == 1)
    running.trainer.step()  # lost
    running.trainer.snapshot(running.snapshots)
    version = await running.learn()
    await running.until(lambda: running.server.model.version == version)
    assert len(calls) >= 2
    assert not running.server.weights.ended
