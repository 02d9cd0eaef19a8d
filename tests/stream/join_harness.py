"""A join core stepped in memory, rows and events made of a few numbers, and what comes out of it as plain tuples."""

from __future__ import annotations

import numpy as np

from stream.join.config import JoinConfig
from stream.join.core import JoinCore
from stream.join.in_memory import MemoryJoin
from stream.join.output import JoinOutput, Records
from stream.records.events import EventRows
from stream.records.examples import ExampleRows
from stream.records.served import ServedRows
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from tests.stream.oracle import Example

T0 = 1_650_000_000_000
CONFIG = JoinConfig(
    display_horizon_s=6,
    click_horizon_s=30,
    conversion_horizon_s=10_000,
    allowed_lateness_s=5,
    display_lead_s=3,
    idle_timeout_s=2,
)


EMPTY = ExampleRows.empty(2, 2)


class Joined:
    """A core stepped in memory, fed one record at a time; a record's offset is given."""

    def __init__(self, config: JoinConfig = CONFIG) -> None:
        self.core = JoinCore(config, 0)
        self.join = MemoryJoin(self.core, 2, 2)

    def served(self, rows: ServedRows, offset: int) -> None:
        """One served record."""
        self.core.served(rows, Records.one(offset, len(rows), promise_ms=rows.watermark_ms))

    def impressions(self, rows: EventRows, offset: int) -> None:
        """One record of impressions."""
        self.core.impressions(rows, Records.one(offset, len(rows), promise_ms=rows.watermark_ms))

    def clicks(self, rows: EventRows, offset: int, produced_ms: int = 0) -> None:
        """One record of clicks."""
        self.core.clicks(rows, Records.one(offset, len(rows), produced_ms, rows.watermark_ms))

    def conversions(self, rows: EventRows, offset: int) -> None:
        """One record of conversions."""
        self.core.conversions(rows, Records.one(offset, len(rows), promise_ms=rows.watermark_ms))

    def poll(self, now_ms: int | None = None) -> JoinOutput:
        """What became known."""
        return self.join.poll(now_ms)

    def advance(self, to_s: float) -> JoinOutput:
        """Promise that all inputs have come to `to_s`, and poll."""
        for topic in (SERVED, IMPRESSIONS, CLICKS):
            self.core.watermark(topic, int(T0 + to_s * 1000))
        return self.poll()


def served(*events: tuple[int, float], watermark_s: float | None = None) -> ServedRows:
    """Served rows of (impression id, seconds) whose columns tell the id."""
    key = np.array([one[0] for one in events], np.uint64)
    return ServedRows(
        impression_id=key,
        row_request=np.arange(len(events), dtype=np.uint32),
        logit=(key + np.uint64(6)).astype(np.float32),
        p=(key + np.uint64(7)).astype(np.float32),
        conversion_logit=(key + np.uint64(10)).astype(np.float32),
        conversion_p=np.full(len(events), np.nan, np.float32),
        propensity=(key + np.uint64(8)).astype(np.float32),
        ad_ids=(key + np.uint64(3))[:, None],
        ad_dense=(key + np.uint64(5)).astype(np.float32)[:, None],
        ts_ms=np.array([T0 + one[1] * 1000 for one in events], np.int64),
        user_key=key + np.uint64(1),
        model_version=(key + np.uint64(9)).astype(np.int64),
        request_ids=(key + np.uint64(2))[:, None],
        request_dense=(key + np.uint64(4)).astype(np.float32)[:, None],
        watermark_ms=_promise(watermark_s),
    )


def events(
    *of: tuple[int, float] | tuple[int, float, float] | tuple[int, float, float, int], watermark_s: float | None = None
) -> EventRows:
    """Events of (impression id, seconds[, value[, by how much the user key is wrong]])."""
    keys = np.array([one[0] for one in of], np.uint64)
    return EventRows(
        impression_id=keys,
        ts_ms=np.array([T0 + one[1] * 1000 for one in of], np.int64),
        user_key=keys + np.array([1 + (one[3] if len(one) > 3 else 0) for one in of], np.uint64),
        position=np.zeros(len(of), np.int32),
        value=np.array([one[2] if len(one) > 2 else 0.0 for one in of], np.float32),
        watermark_ms=_promise(watermark_s),
    )


def _promise(watermark_s: float | None) -> int:
    return 0 if watermark_s is None else int(T0 + watermark_s * 1000)


def as_examples(rows: ExampleRows | None) -> list[Example]:
    """The rows as the oracle names them; every column that was served is checked on the way."""
    if rows is None:
        return []
    key = rows.impression_id.astype(np.int64)
    assert (rows.user_key == key + 1).all()
    assert (rows.ids == np.stack([key + 2, key + 3], axis=1)).all()
    assert (rows.dense == np.stack([key + 4, key + 5], axis=1)).all()
    assert (rows.logit == key + 6).all()
    assert (rows.p == key + 7).all()
    assert (rows.conversion_logit == key + 10).all()
    assert np.isnan(rows.conversion_p).all()
    assert (rows.propensity == key + 8).all()
    assert (rows.model_version == key + 9).all()
    columns = (rows.kind, key, rows.ts_ms, rows.known_ms, rows.delay_ms, rows.value, rows.click_produced_ms)
    return [Example(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def short(rows: ExampleRows | None) -> list[tuple[int, int]]:
    """(kind, impression id) of each row."""
    return [(one.kind, one.impression_id) for one in as_examples(rows)]


def rebuilt(join: Joined, out: JoinOutput, config: JoinConfig = CONFIG) -> Joined:
    """Another core after a restart that finds ``out`` as the last thing stored, and all examples of ``join``."""
    other = Joined(config)
    other.core.start_at(out.offsets, out.resume)
    for offset, rows in join.join.examples.items():
        other.core.restore(rows, offset, out.watermark_ms)
        other.join.clicks.put(rows)
    other.join.examples = dict(join.join.examples)
    other.join.next_offset = join.join.next_offset
    return other
