"""The join's log: what it says must come out does come out, of an offline join and of the peers' dictionaries."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.partition import partition_of
from stream.records import ServedRecord
from stream.topics import CLICKS, IMPRESSIONS, SERVED
from tests.bench.join_log import BATCH, SPEC, WINDOW_MS, Encoding, JoinLog, digest, join_log
from tests.bench.peers.dict_join import DictJoin, Row, rows_of

LOGS = {
    "impressions": st.integers(1, 700),
    "encoding": st.sampled_from(["batch", "json"]),
    "seed": st.integers(0, 10),
    "partitions": st.integers(1, 3),
    "per_second": st.sampled_from([2.0, 100.0, 5000.0]),
}


def _digest(labels: dict[int, bool]) -> int:
    return digest(np.array([*labels], np.uint64), np.array([*labels.values()], np.bool_))


def _rows(log: JoinLog) -> list[tuple[int, Row]]:
    return [(record.partition, row) for record in log.records for row in rows_of(record.topic, record.value)]


@settings(max_examples=25, deadline=None)
@given(**LOGS)
def test_what_is_expected_equals_a_slow_join_of_the_records(**log_of: Any) -> None:
    """Look at all events at once: a display is positive when a click of its id lies within its window."""
    log = join_log(**log_of)
    rows = [row for _, row in _rows(log) if "impression_id" in row]
    times: dict[str, dict[int, int]] = {topic: {} for topic in (SERVED, IMPRESSIONS, CLICKS)}
    for row in rows:
        times[row["topic"]][row["impression_id"]] = row["ts_ms"]
    clicks = times[CLICKS]
    labels = {
        key: key in clicks and 0 <= clicks[key] - shown_ms < WINDOW_MS for key, shown_ms in times[IMPRESSIONS].items()
    }
    assert times[SERVED].keys() == labels.keys()
    assert len(rows) == 2 * log.impressions + log.positives
    assert (len(labels), sum(labels.values()), _digest(labels)) == (log.impressions, log.positives, log.digest)


@settings(max_examples=25, deadline=None)
@given(**LOGS)
def test_joined_record_by_record_everything_settles_once_and_right(**log_of: Any) -> None:
    """The promises at the end settle all that is left; nothing settles twice."""
    log = join_log(**log_of)
    joins = [DictJoin() for _ in range(log_of["partitions"])]
    settled = [example for partition, row in _rows(log) for example in joins[partition].take(row)]
    labels = {example["impression_id"]: bool(example["label"]) for example in settled}
    assert len(settled) == len(labels) == log.impressions
    assert _digest(labels) == log.digest


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


def test_the_digest_sees_labels_and_repetitions_but_no_order() -> None:
    """Three (id, label) pairs in every order; one label changed; one pair twice."""
    ids, labels = np.array([1, 2, 3], np.uint64), np.array([True, False, True])
    found = digest(ids, labels)
    assert digest(ids[::-1], labels[::-1]) == found
    assert digest(ids, np.array([True, True, True])) != found
    assert digest(np.append(ids, ids[:1]), np.append(labels, labels[:1])) != found
    assert digest(ids, np.array([False, True, True])) != found


def _served(value: bytes) -> ServedRecord:
    return msgspec.msgpack.decode(value, type=ServedRecord)
