"""The join's core alone, in a process of its own: ``python -m tests.bench.join_core``, see `tests.bench.turns`."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from stream.join.batches import EventBatch, ServedBatch, events_batch, served_batch
from stream.join.config import JoinConfig
from stream.join.core import JoinCore
from stream.join.late import with_late_clicks
from stream.join.output import Records
from stream.kafka.input_record import InputRecord
from stream.records.events import EventRows
from stream.records.examples import ExampleRows
from stream.records.served import ServedRows
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from stream.records.wire import SCORES
from tests.bench.join_log import SPEC, JoinLog, digest, join_log
from tests.bench.join_times import HORIZON_MS
from tests.bench.peers.dict_join import DictJoin, rows_of
from tests.bench.turns import serve

CONFIG = JoinConfig(display_horizon_s=HORIZON_MS / 1000)
_RECORDS_A_STEP = 200
_AHEAD_MS = CONFIG.ms("max_ahead_s")
_PENDING_STEP = 10_000


def _steps(log: JoinLog) -> Iterator[list[InputRecord]]:
    records = [
        InputRecord(one.topic, one.partition, offset, one.value, one.sent_ms) for offset, one in enumerate(log.records)
    ]
    return (records[at : at + _RECORDS_A_STEP] for at in range(0, len(records), _RECORDS_A_STEP))


def _decoded(step: Sequence[InputRecord]) -> list[tuple[str, ServedBatch | EventBatch]]:
    by_topic = groupby(sorted(step, key=lambda one: one.topic), key=lambda one: one.topic)
    parts = {topic: list(records) for topic, records in by_topic}
    return [
        (
            topic,
            served_batch(parts[topic], SPEC, _AHEAD_MS)
            if topic == SERVED
            else events_batch(topic, parts[topic], _AHEAD_MS),
        )
        for topic in (SERVED, IMPRESSIONS, CLICKS)
        if topic in parts
    ]


class _Run:
    """A core and what it has put out."""

    def __init__(self) -> None:
        self.core = JoinCore(CONFIG, 0, salt=1)
        self.ids: list[Any] = []
        self.kinds: list[Any] = []
        self.records: dict[int, ExampleRows] = {}  # the examples written, as the shell remembers them

    def step(self, batches: Sequence[tuple[str, Any]], *, encode: bool = False) -> None:
        for topic, batch in batches:
            if topic == SERVED:
                self.core.served(batch.rows, batch.records)
            elif topic == IMPRESSIONS:
                self.core.impressions(batch.rows, batch.records)
            else:
                self.core.clicks(batch.rows, batch.records)
        output = with_late_clicks(self.core.poll(), self.records, 0)
        rows = output.examples
        if rows is None:
            self.core.stored([], [])
            return
        self.ids.append(rows.impression_id)
        self.kinds.append(rows.kind)
        if encode:
            rows.to_record(SPEC.hash, 0).encode()
        self.core.stored([len(self.ids)], [0])
        self.records[len(self.ids)] = rows
        while (oldest := next(iter(self.records))) < output.resume.examples:
            del self.records[oldest]

    def right(self, log: JoinLog) -> bool:
        ids = np.concatenate(self.ids)
        return len(ids) == log.examples and digest(ids, np.concatenate(self.kinds)) == log.digest


def core(*, impressions: int, rounds: int) -> dict[str, float]:
    """Impressions a core second through the core, alone and with decoding and encoding; a dict join beside it."""
    log = join_log(impressions, "batch", per_second=2_000)
    steps = list(_steps(log))
    decoded = [_decoded(step) for step in steps]
    alone, whole, peer, right = [], [], [], True
    for _ in range(rounds + 1):
        run, used = _Run(), time.process_time()
        for batches in decoded:
            run.step(batches)
        alone.append(log.impressions / (time.process_time() - used))
        right &= run.right(log)
        run, used = _Run(), time.process_time()
        for step in steps:
            run.step(_decoded(step), encode=True)
        whole.append(log.impressions / (time.process_time() - used))
        peer.append(_dict_join(steps[: len(steps) // 8]))
    answers = {"alone": alone, "whole": whole, "peer": peer}
    return {name: float(np.median(values[1:])) for name, values in answers.items()} | {"right": float(right)}


def _dict_join(steps: Sequence[Sequence[InputRecord]]) -> float:
    """Displayed rows a core second of rows exploded into dicts."""
    exploded = [[rows_of(one.topic, one.value or b"") for one in step] for step in steps]
    join, shown, used = DictJoin(), 0, time.process_time()
    for step in exploded:
        for rows in step:
            for row in rows:
                shown += row["topic"] == IMPRESSIONS
                for _ in join.take(row):
                    pass
    return shown / (time.process_time() - used)


def pending(*, rows: int) -> dict[str, float]:
    """Bytes a pending impression beside its ids and dense inputs: as counted, and by the resident memory."""
    run = _Run()
    before, rss = _pend(run, 0, _PENDING_STEP), _resident()
    for first in range(before, rows, _PENDING_STEP):
        _pend(run, first, _PENDING_STEP)
    held, core = run.core.pending_rows, run.core
    ids = 8 * SPEC.id_columns + 4 * SPEC.dense_inputs
    return {
        "pending": held,
        "counted": (core.bytes - core.id_bytes) / held,
        "with_ids": core.bytes / held,
        "resident": (_resident() - rss) / (held - before),
        "ids_a_row": ids,
    }


def _pend(run: _Run, first: int, count: int) -> int:
    """Serve and display rows of one moment; requests of ten ads."""
    key = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    requests = count // 10
    scores: dict[str, Any] = {name: np.full(count, np.nan, np.float32) for name in SCORES}  # of a model of one head
    scores |= {"logit": np.arange(count, dtype=np.float32), "p": np.linspace(0, 1, count, dtype=np.float32)}
    scores["propensity"] = np.ones(count, np.float32)
    served = ServedRows(
        impression_id=key,
        row_request=np.repeat(np.arange(requests, dtype=np.uint32), 10),
        **scores,
        ad_ids=np.ones((count, len(SPEC.ad_fields)), np.uint64),
        ad_dense=np.ones((count, len(SPEC.ad_dense)), np.float32),
        ts_ms=np.full(requests, 1_767_225_600_000),
        user_key=np.arange(requests, dtype=np.uint64),
        model_version=np.zeros(requests, np.int64),
        request_ids=np.ones((requests, len(SPEC.request_fields)), np.uint64),
        request_dense=np.ones((requests, len(SPEC.request_dense)), np.float32),
    )
    shown = EventRows(
        impression_id=key,
        ts_ms=np.full(count, 1_767_225_601_000),
        user_key=served.user_key[served.row_request],
        position=np.zeros(count, np.int32),
        value=np.zeros(count, np.float32),
    )
    records = Records.one(first, count)
    run.step([(SERVED, ServedBatch(served, records, [])), (IMPRESSIONS, EventBatch(shown, records, []))])
    return count


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    serve({"core": core, "pending": pending})
