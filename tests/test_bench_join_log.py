"""The join's log: what it says must come out does come out, of an offline join and of the peers' dictionaries."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.examples.kinds import CLICK, EXPOSURE
from stream.records.partition import partition_of
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from stream.records.wire import ServedRecord
from tests.bench.join_log import BATCH, SPEC, Encoding, JoinLog, digest, join_log
from tests.bench.join_times import HORIZON_MS, LEAD_MS
from tests.bench.peers.dict_join import INPUTS, DictJoin, Row, rows_of

LOGS = {
    "impressions": st.integers(1, 700),
    "encoding": st.sampled_from(["batch", "json"]),
    "seed": st.integers(0, 10),
    "partitions": st.integers(1, 3),
    "per_second": st.sampled_from([2.0, 100.0, 5000.0]),
}


def _digest(examples: list[tuple[int, int]]) -> int:
    """Of (impression id, kind)."""
    return digest(np.array([key for key, _ in examples], np.uint64), np.array([kind for _, kind in examples]))


def _rows(log: JoinLog) -> list[tuple[int, Row]]:
    return [(record.partition, row) for record in log.records for row in rows_of(record.topic, record.value)]


@settings(max_examples=25, deadline=None)
@given(**LOGS)
def test_what_is_expected_equals_a_slow_join_of_the_records(**log_of: Any) -> None:
    """Look at all events at once: each display is an exposure, and each click of it within the horizon a click."""
    log = join_log(**log_of)
    rows = [row for _, row in _rows(log) if "impression_id" in row]
    times: dict[str, dict[int, int]] = {topic: {} for topic in (SERVED, IMPRESSIONS, CLICKS)}
    for row in rows:
        times[row["topic"]][row["impression_id"]] = row["ts_ms"]
    shown, clicks = times[IMPRESSIONS], times[CLICKS]
    clicked = [key for key, ts_ms in clicks.items() if 0 <= ts_ms - shown[key] < HORIZON_MS]
    assert times[SERVED].keys() == shown.keys()
    assert len(rows) == 2 * log.impressions + log.clicks
    assert (len(shown), len(clicked), log.examples) == (log.impressions, log.clicks, len(shown) + len(clicked))
    assert _digest([(key, EXPOSURE) for key in shown] + [(key, CLICK) for key in clicked]) == log.digest


@settings(max_examples=25, deadline=None)
@given(**LOGS)
def test_joined_record_by_record_everything_comes_out_once_and_right(**log_of: Any) -> None:
    """No exposure far ahead of the slowest topic; its click after it; all of it by the end."""
    log = join_log(**log_of)
    joins = [DictJoin() for _ in range(log_of["partitions"])]
    reached = [dict.fromkeys(INPUTS, 0) for _ in joins]
    found: list[tuple[int, int]] = []
    for partition, row in _rows(log):
        reached[partition][row["topic"]] = row["ts_ms"]
        for example in joins[partition].take(row):
            key = example["impression_id"]
            if example["kind"] == EXPOSURE:
                assert example["ts_ms"] <= min(reached[partition].values()) + LEAD_MS
            else:
                assert (key, EXPOSURE) in found
            found.append((key, example["kind"]))
    assert len(found) == log.examples
    assert _digest(found) == log.digest


@settings(max_examples=25, deadline=None)
@given(**LOGS)
def test_records_come_as_producers_send_them(**log_of: Any) -> None:
    """Sent in the order of time, never before their events; each topic's events in order, at their users' partition."""
    log = join_log(**log_of)
    assert [r.sent_ms for r in log.records] == sorted(r.sent_ms for r in log.records)
    newest: Counter[tuple[str, int]] = Counter()
    for record in log.records:
        for row in rows_of(record.topic, record.value):
            assert newest[record.topic, record.partition] <= row["ts_ms"] <= record.sent_ms
            newest[record.topic, record.partition] = row["ts_ms"]
        if record.topic == SERVED:
            users = _served(record.value).arrays()["user_key"]
            assert (partition_of(users, log_of["partitions"]) == record.partition).all()
        elif record.key is not None:
            assert partition_of(np.array([int(record.key)], np.uint64), log_of["partitions"])[0] == record.partition


@pytest.mark.parametrize("encoding", ["batch", "json"])
def test_a_full_log_has_full_records(encoding: Encoding) -> None:
    """Rows as wide as the spec; a hundred rows a record; two logs of one seed are equal, of two seeds are not."""
    log = join_log(3_000, encoding, seed=3)
    record = _served(log.records[0].value)
    assert (record.requests, record.rows) == (BATCH // 10, BATCH)
    assert record.request_fields + record.ad_fields == SPEC.id_columns
    assert record.request_dense_inputs + record.ad_dense_inputs == SPEC.dense_inputs
    assert len(_rows(log)[0][1]["ids"]) == SPEC.id_columns
    shown = Counter(record.topic for record in log.records)[IMPRESSIONS] - 1  # without the promise
    assert shown == (30 if encoding == "batch" else 3_000)
    assert join_log(3_000, encoding, seed=3) == log
    assert join_log(3_000, encoding, seed=4).digest != log.digest


def test_the_digest_sees_kinds_and_repetitions_but_no_order() -> None:
    """Three (id, kind) pairs in every order; one kind changed; one pair twice."""
    ids, kinds = np.array([1, 2, 3], np.uint64), np.array([CLICK, EXPOSURE, CLICK])
    found = digest(ids, kinds)
    assert digest(ids[::-1], kinds[::-1]) == found
    assert digest(ids, np.array([CLICK, CLICK, CLICK])) != found
    assert digest(np.append(ids, ids[:1]), np.append(kinds, kinds[:1])) != found
    assert digest(ids, np.array([EXPOSURE, CLICK, CLICK])) != found


def _served(value: bytes) -> ServedRecord:
    return msgspec.msgpack.decode(value, type=ServedRecord)


def test_the_peers_need_nothing_that_their_environment_lacks() -> None:
    """Numpy and msgspec; a dependency of the project's that comes in with an import would end the benchmark."""
    lacking = ("scipy", "torch", "numba", "orjson", "aiokafka", "redis", "structlog", "pyarrow", "river")
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in lacking)
    program = f"import sys; {blocked}import tests.bench.peers.dict_join, tests.bench.peers.stopwatch, tests.bench.turns"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
