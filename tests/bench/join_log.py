"""A log for the join: served rows, impressions and clicks as their producers would send them, and what must come out.

Every served ad is displayed; 1.5 % of the impressions are clicked, all within a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, EXPOSURE
from learners.features.spec import load_spec
from stream.records.partition import key_bytes, partition_of
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from stream.records.wire import EventsRecord, ServedRecord
from tests.bench.join_times import HORIZON_MS, LINGER_MS

Encoding = Literal["batch", "json"]

SPEC = load_spec("marketplace")
START_MS = 1_767_225_600_000  # 2026-01-01
ADS = 10  # of a request
BATCH = 100  # rows of a full record
CLICK_RATE = 0.015
USERS = 100_000
_MEDIAN_DELAY_MS, _DELAY_SPREAD = 20_000, 0.8
_FIRST_DISPLAY_MS, _DISPLAY_STEP_MS = 200, 50  # after the request; between its ads
_QUIET_MS = 60_000  # beyond the last click, promised at the end of the log


class LogRecord(NamedTuple):
    """One Kafka record. ``sent_ms`` is its timestamp; ``topic`` is without a prefix."""

    topic: str
    partition: int
    sent_ms: int
    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class JoinLog:
    """The records in the order in which they are sent, and what an exact join makes of them."""

    records: list[LogRecord]
    impressions: int
    clicks: int
    digest: int  # of all (impression id, kind)

    @property
    def examples(self) -> int:
        """An exposure of each impression, and the clicks."""
        return self.impressions + self.clicks


def join_log(
    impressions: int, encoding: Encoding, *, seed: int = 0, partitions: int = 1, per_second: float = 1000.0
) -> JoinLog:
    """A log of so many displays; event time goes on by a second every ``per_second`` of them.

    ``batch``: records of ``BATCH`` rows, or fewer when ``LINGER_MS`` are over. ``json``: one event a record for
    impressions and clicks, keyed by user; served rows in batches all the same. The last records of every partition
    promise that nothing earlier than two minutes after the last record will follow.
    """
    world = _World.drawn(impressions, seed, per_second)
    home = partition_of(world.user_key, partitions)
    shown_home, clicked = home[world.row_request], np.flatnonzero(world.clicked)
    shown_order = np.argsort(world.shown_ms, kind="stable")
    click_order = clicked[np.argsort(world.click_ms[clicked], kind="stable")]
    events = _event_batches if encoding == "batch" else _json_events
    records: list[LogRecord] = []
    for partition in range(partitions):
        records += _served(world, np.flatnonzero(home == partition), partition)
        for topic, order, ts_ms in (
            (IMPRESSIONS, shown_order, world.shown_ms),
            (CLICKS, click_order, world.click_ms),
        ):
            rows = order[shown_home[order] == partition]
            records += events(topic, partition, _Events.of(world, rows, ts_ms))
    records.sort(key=attrgetter("sent_ms"))  # stable: what is sent at one time stays in the order of the topics
    end_ms = records[-1].sent_ms + HORIZON_MS + _QUIET_MS
    for partition in range(partitions):
        records += _promises(partition, end_ms, encoding)
    ids = np.concatenate((world.impression_id, world.impression_id[clicked]))
    kinds = np.repeat([EXPOSURE, CLICK], [impressions, len(clicked)])
    return JoinLog(records, impressions, len(clicked), digest(ids, kinds))


def digest(impression_id: NDArray[np.uint64], kind: NDArray[Any]) -> int:
    """A number that depends on every (impression id, kind) and on how often it is there, not on their order."""
    mixed = _mixed(_mixed(impression_id) ^ kind.astype(np.uint64))
    return int(mixed.sum(dtype=np.uint64))


@dataclass(frozen=True, eq=False)
class _World:
    """R requests and the N rows that came of them, ``ADS`` a request. Times ascend over the requests."""

    user_key: NDArray[np.uint64]  # (R,)
    asked_ms: NDArray[np.int64]  # (R,)
    impression_id: NDArray[np.uint64]  # (N,)
    clicked: NDArray[np.bool_]  # (N,)
    shown_ms: NDArray[np.int64]  # (N,)
    click_ms: NDArray[np.int64]  # (N,) also where nothing was clicked
    columns: dict[str, NDArray[Any]]  # of the served rows, by their name in the record

    @classmethod
    def drawn(cls, count: int, seed: int, per_second: float) -> _World:
        rng = np.random.default_rng(seed)
        requests = -(-count // ADS)
        row = np.arange(count)
        asked_ms = START_MS + (np.arange(requests) * (ADS * 1000 / per_second)).astype(np.int64)
        shown_ms = asked_ms[row // ADS] + _FIRST_DISPLAY_MS + _DISPLAY_STEP_MS * (row % ADS)
        users = rng.integers(1, 2**64, USERS, dtype=np.uint64)
        return cls(
            user_key=users[rng.integers(0, USERS, requests)],
            asked_ms=asked_ms,
            impression_id=_mixed(row.astype(np.uint64) + np.uint64(1)),  # a bijection: no id twice
            clicked=rng.random(count) < CLICK_RATE,
            shown_ms=shown_ms,
            click_ms=shown_ms + _delays(rng, count),
            columns={
                "request_ids": rng.integers(1, 2**64, (requests, len(SPEC.request_fields)), dtype=np.uint64),
                "request_dense": rng.random((requests, len(SPEC.request_dense)), dtype=np.float32),
                "ad_ids": rng.integers(1, 2**64, (count, len(SPEC.ad_fields)), dtype=np.uint64),
                "ad_dense": rng.random((count, len(SPEC.ad_dense)), dtype=np.float32),
                "logit": rng.standard_normal(count, dtype=np.float32),
                "p": rng.random(count, dtype=np.float32),
                "conversion_logit": np.full(count, np.nan, np.float32),
                "conversion_p": np.full(count, np.nan, np.float32),
                "propensity": np.ones(count, np.float32),
            },
        )

    @cached_property
    def row_request(self) -> NDArray[np.int64]:
        return np.arange(len(self.impression_id)) // ADS


def _delays(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Log-normal, drawn again where a delay is not within the horizon."""
    delays = np.full(count, HORIZON_MS, np.int64)
    while len(late := np.flatnonzero(delays >= HORIZON_MS)):
        delays[late] = np.exp(rng.normal(np.log(_MEDIAN_DELAY_MS), _DELAY_SPREAD, len(late))).astype(np.int64)
    return delays


class _Events(NamedTuple):
    """Events of one topic and partition, in the order of their times."""

    impression_id: NDArray[np.uint64]
    ts_ms: NDArray[np.int64]
    user_key: NDArray[np.uint64]
    position: NDArray[np.int64]

    @classmethod
    def of(cls, world: _World, rows: NDArray[np.intp], ts_ms: NDArray[np.int64]) -> _Events:
        user_key = world.user_key[world.row_request[rows]]
        return cls(world.impression_id[rows], ts_ms[rows], user_key, rows % ADS)


def _batches(ts_ms: NDArray[np.int64], most: int) -> Iterator[tuple[slice, int]]:
    """Which rows a producer sends together, and when: ``most`` of them, or what is there when the first has waited."""
    start = 0
    while start < len(ts_ms):
        sent_ms = int(ts_ms[start]) + LINGER_MS
        stop = int(np.searchsorted(ts_ms, sent_ms))
        if stop - start >= most:
            stop = start + most
            sent_ms = int(ts_ms[stop - 1])
        yield slice(start, stop), sent_ms
        start = stop


def _served(world: _World, requests: NDArray[np.intp], partition: int) -> Iterator[LogRecord]:
    for part, sent_ms in _batches(world.asked_ms[requests], BATCH // ADS):
        mine = requests[part]
        rows = np.flatnonzero(np.isin(world.row_request[mine[0] * ADS : (mine[-1] + 1) * ADS], mine)) + mine[0] * ADS
        columns = {n: v[mine if n.startswith("request") else rows] for n, v in world.columns.items()}
        value = _served_value(
            requests=len(mine),
            rows=len(rows),
            request_id=mine + 1,
            ts_ms=world.asked_ms[mine],
            user_key=world.user_key[mine],
            row_request=np.searchsorted(mine, world.row_request[rows]),
            impression_id=world.impression_id[rows],
            **columns,
        )
        yield LogRecord(SERVED, partition, sent_ms, None, value)


def _served_value(**values: Any) -> bytes:
    return ServedRecord.of(
        spec_hash=SPEC.hash,
        model_version=1,
        map_version=1,
        variant="main",
        request_fields=len(SPEC.request_fields),
        ad_fields=len(SPEC.ad_fields),
        request_dense_inputs=len(SPEC.request_dense),
        ad_dense_inputs=len(SPEC.ad_dense),
        **values,
    ).encode()


def _event_batches(topic: str, partition: int, events: _Events) -> Iterator[LogRecord]:
    for part, sent_ms in _batches(events.ts_ms, BATCH):
        columns = {name: column[part] for name, column in events._asdict().items()}
        rows = part.stop - part.start
        value = EventsRecord.of(rows=rows, value=np.zeros(rows), **columns).encode()
        yield LogRecord(topic, partition, sent_ms, None, value)


def _json_events(topic: str, partition: int, events: _Events) -> Iterator[LogRecord]:
    for impression_id, ts_ms, user_key, position in zip(*(column.tolist() for column in events), strict=True):
        event = {"impression_id": str(impression_id), "ts_ms": ts_ms, "user_key": str(user_key)}
        if topic == IMPRESSIONS:
            event["position"] = position
        yield LogRecord(topic, partition, ts_ms, key_bytes(user_key), msgspec.json.encode(event))


def _promises(partition: int, end_ms: int, encoding: Encoding) -> Iterator[LogRecord]:
    none = np.zeros(0)
    served = _served_value(requests=0, rows=0, watermark_ms=end_ms, **dict.fromkeys(ServedRecord.LAYOUT, none))
    batch = EventsRecord.of(rows=0, watermark_ms=end_ms, **dict.fromkeys(EventsRecord.LAYOUT, none)).encode()
    event = batch if encoding == "batch" else msgspec.json.encode({"watermark_ms": end_ms})
    for topic, value in ((SERVED, served), (IMPRESSIONS, event), (CLICKS, event)):
        yield LogRecord(topic, partition, end_ms, None, value)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
