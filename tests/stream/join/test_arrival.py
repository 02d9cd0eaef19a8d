"""What a record may tell of the time."""

from __future__ import annotations

import numpy as np

from stream.join.arrival import UNBOUNDED_MS, Arrivals, Clock
from stream.join.batches import events_batch
from stream.join.config import JoinConfig
from stream.join.inputs import JoinInputs
from stream.join.output import Records
from stream.kafka.input_record import InputRecord
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from tests.stream.join_harness import T0, Joined, events, rebuilt, served

MINUTE_MS = 60_000
FAR_MS = 3_950_000_000_000  # 2095


def records(*produced_ms: int, event_ms: int = T0) -> list[InputRecord]:
    """Clicks with these times of their records."""
    value = b'{"impression_id": 1, "user_key": 2, "ts_ms": %d}' % event_ms
    return [InputRecord(CLICKS, 0, offset, value, at) for offset, at in enumerate(produced_ms)]


def test_a_record_came_by_now_whatever_its_time_says() -> None:
    """The producer writes it, and so may write any."""
    arrivals = Arrivals.of(records(T0 - 5, FAR_MS), Clock(T0))
    assert arrivals.produced_ms.tolist() == arrivals.until_ms.tolist() == [T0 - 5, T0]


def test_one_record_does_not_run_ahead_of_those_read_with_it() -> None:
    """A backlog of an hour ago, and one whose clock is fast by 55 minutes: it is bounded by the bulk."""
    then = T0 - 60 * MINUTE_MS
    arrivals = Arrivals.of(records(then, then + 1, then + 55 * MINUTE_MS, then + 2), Clock(T0, ahead_ms=MINUTE_MS))
    assert arrivals.until_ms.tolist() == [then, then + 1, then + 2 + MINUTE_MS, then + 2]


def test_a_replay_has_no_time_but_that_of_its_log() -> None:
    """Nothing is bounded."""
    arrivals = Arrivals.of(records(FAR_MS), None)
    assert (arrivals.produced_ms.tolist(), arrivals.until_ms.tolist()) == ([FAR_MS], [UNBOUNDED_MS])


def test_an_event_later_than_the_clock_and_what_clocks_differ_is_a_reject() -> None:
    """Though its record says that it came then; in a replay the record is believed."""
    ahead_ms = 60 * MINUTE_MS
    late = records(FAR_MS, event_ms=FAR_MS)
    batch = events_batch(CLICKS, late, ahead_ms, Clock(T0))
    assert ([one.reason for one in batch.rejects], len(batch.rows)) == (["time"], 0)
    assert f"later than {T0 + ahead_ms}" in batch.rejects[0].detail
    assert len(events_batch(CLICKS, late, ahead_ms).rows) == 1


def test_nothing_moves_time_beyond_when_its_record_came() -> None:
    """Neither an event nor a promise, of whatever input; the record that is bounded still counts as heard."""
    join = Joined()
    until_ms = T0 + 10_000
    ahead = Records.one(0, 1, until_ms=until_ms)
    join.core.served(served((7, 3_000)), ahead)
    join.core.impressions(events((8, 3_000)), ahead)
    join.core.clicks(events((9, 3_000)), ahead)
    assert join.poll().watermark_ms == until_ms - 5_000
    promise = Records.one(1, 0, promise_ms=T0 + 3_300_000, until_ms=until_ms + 1)
    for feed in (join.core.impressions, join.core.clicks):
        feed(events(), promise)
    join.core.served(served(), promise)
    assert join.poll().watermark_ms == until_ms + 1


def test_time_does_not_pass_the_clock() -> None:
    """Not when all inputs are idle either, and the one that came furthest counts."""
    join = Joined()
    join.impressions(events((8, 3_000)), 0)
    assert join.poll(T0).watermark_ms == 0
    assert join.poll(T0 + 3_000).watermark_ms == T0 + 3_000


def test_an_event_that_is_rejected_moves_no_time() -> None:
    """A display that is late for its row, a click of another user: what they say of the time counts as little."""
    join = Joined()
    join.served(served((7, 0)), 0)
    join.core.watermark(SERVED, T0 + 100_000_000)
    join.core.watermark(CLICKS, T0)
    join.impressions(events((7, 1)), 0)
    join.impressions(events((7, 3_300, 0, 4)), 1)
    join.impressions(events((7, 2)), 2)
    join.clicks(events((7, 3_300)), 0)  # beyond the click horizon
    assert join.poll().watermark_ms == T0 - 3_000
    join.served(served((8, 1)), 1)
    join.impressions(events((8, 3_300)), 3)
    out = join.advance(2)
    assert [reject.reason for reject in out.rejects] == ["late"]
    assert out.watermark_ms == T0 + 2_000


def test_what_a_rejected_event_does_not_tell_is_not_known_after_a_restart_either() -> None:
    """Time is the same: the record that moved it is read again, others move nothing."""
    join = Joined()
    join.core.watermark(CLICKS, T0 + 50_000)
    join.core.watermark(IMPRESSIONS, T0 + 50_000)
    join.served(served((7, 0)), 0)
    join.served(served((8, 30)), 1)
    join.impressions(events((7, 3_300)), 0)
    join.impressions(events((8, 60)), 1)
    out = join.poll()
    assert out.offsets[IMPRESSIONS] == 2
    other = rebuilt(join, out)
    for again in (join, other):
        again.core.watermark(CLICKS, T0 + 50_000)
        again.core.watermark(IMPRESSIONS, T0 + 50_000)
        again.served(served((8, 30)), 1)
    assert join.poll().watermark_ms == other.poll().watermark_ms == T0 + 25_000


def test_a_conversion_of_the_future_stops_no_input() -> None:
    """How far conversions have come is bounded as well."""
    inputs = JoinInputs(JoinConfig())
    for topic in (SERVED, IMPRESSIONS, CLICKS):
        inputs.promise(topic, T0)
    inputs.poll(None)
    conversions = "ads.conversions.v1"
    arrived = inputs.arrive(conversions, Records.one(0, 1, until_ms=T0))
    inputs.move_time(conversions, np.array([T0 + MINUTE_MS]), arrived)
    assert not inputs.ahead(0)
