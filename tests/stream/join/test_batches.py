"""Records decoded together: the rows, and the rejects, are those that each of them yields alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.join.batches import events_batch, served_batch
from stream.kafka.input_record import InputRecord
from stream.records.columns import RecordError
from stream.records.events import EVENT_COLUMNS, decode_events
from stream.records.limits import EARLIEST_MS
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, SERVED
from tests.stream.pipeline import SPEC, START_MS, serve
from tests.stream.records.test_inputs import T0, events

MAX_AHEAD_MS = 3_600_000
_IDS = st.one_of(st.integers(0, 2**64), st.integers(0, 2**64).map(str), st.sampled_from(["", "-1", -1, "9" * 20, None]))
_TIMES = st.one_of(st.integers(T0 - 10, T0 + 2 * MAX_AHEAD_MS), st.sampled_from([EARLIEST_MS - 1, 2**63, "1", 1.5]))
_EVENTS = st.builds(
    lambda key, user, ts_ms, extra: json.dumps({"impression_id": key, "user_key": user, "ts_ms": ts_ms} | extra),
    _IDS, _IDS, _TIMES, st.sampled_from([{}, {}, {"position": 3}, {"value": 1e39}, {"value": 2.5}, {"more": 1}]),
)  # fmt: skip
_GOOD = json.dumps({"impression_id": "5", "user_key": 7, "ts_ms": T0})
_VALUES = st.one_of(
    _EVENTS.map(str.encode),
    st.just(_GOOD.encode()),
    st.just(_GOOD.replace(",", ",\n").encode()),
    st.just(f"{_GOOD}\n{_GOOD}".encode()),
    st.sampled_from([b"", None, b" ", b"\n", b"[]", b"1", b"\xc1", b'"watermark_ms"', _GOOD.encode()[:-1]]),
    st.just(b'{"watermark_ms": %d}' % T0),
    st.just(events(3).encode()),
    st.binary(max_size=20),
)
_TYPES = st.sampled_from([None, None, None, "application/json", "APPLICATION/JSON", "application/msgpack", "text/html"])


def alone(topic: str, record: InputRecord) -> tuple[list[tuple[Any, ...]], int, list[str]]:
    """The rows, the promise and the reasons of rejects of one record."""
    try:
        rows = decode_events(topic, record.value, record.content_type)
    except RecordError as error:
        return [], 0, [error.reason]
    if rows.watermark_ms > T0 + MAX_AHEAD_MS:
        return [], 0, ["time"]
    columns = [*zip(*(getattr(rows, name).tolist() for name in EVENT_COLUMNS), strict=True)]
    sound = [row for row in columns if row[1] <= T0 + MAX_AHEAD_MS]
    return sound, rows.watermark_ms, [one.reason for one in rows.rejected] + ["time"] * (len(columns) - len(sound))


@pytest.mark.parametrize("topic", [IMPRESSIONS, CLICKS, CONVERSIONS])
@given(content=st.lists(st.tuples(_VALUES, _TYPES), max_size=12))
@example(content=[(_GOOD.encode(), None)] * 9)
@example(content=[(f"{_GOOD}\n{_GOOD}".encode(), None), (b"\n", None)])
def test_together_they_are_what_they_are_alone(topic: str, content: list[tuple[bytes | None, str | None]]) -> None:
    """Events, promises and batches, sound or not, in any order."""
    records = [InputRecord(topic, 0, at, value, T0, kind) for at, (value, kind) in enumerate(content)]
    wanted = [alone(topic, record) for record in records]
    batch = events_batch(topic, records, MAX_AHEAD_MS)
    columns = zip(*(getattr(batch.rows, name).tolist() for name in EVENT_COLUMNS), strict=True)
    assert [*columns] == [row for rows, _, _ in wanted for row in rows]
    assert batch.records.rows.tolist() == [len(rows) for rows, _, _ in wanted]
    assert batch.records.promise_ms.tolist() == [promise_ms for _, promise_ms, _ in wanted]
    reasons = [[one.reason for one in batch.rejects if one.offset == record.offset] for record in records]
    assert reasons == [reasons for _, _, reasons in wanted]


def test_a_bad_event_among_good_ones_is_the_only_reject() -> None:
    """With the bytes that came."""
    late = _GOOD.replace(str(T0), str(T0 + MAX_AHEAD_MS + 1)).encode()
    values = [_GOOD.encode()] * 50 + [late] + [_GOOD.encode()] * 50
    batch = events_batch(
        CLICKS, [InputRecord(CLICKS, 0, at, value, T0) for at, value in enumerate(values)], MAX_AHEAD_MS
    )
    assert len(batch.rows) == 100
    assert batch.records.rows.tolist() == [1] * 50 + [0] + [1] * 50
    assert [(reject.offset, reject.reason, reject.payload) for reject in batch.rejects] == [(50, "time", late)]


def test_served_rows_of_impossible_scores_are_the_only_rejects() -> None:
    """One row of a record, beside good records: its logit, p or propensity is none."""
    (good,) = serve([1, 2, 3], [START_MS] * 3, 1, first_id=1).record.values()
    for column, wrong in (("p", 2.0), ("p", np.nan), ("logit", np.inf), ("propensity", -1.0), ("conversion_p", 1.5)):
        numbers = np.frombuffer(getattr(good, column), "<f4").copy()
        numbers[1] = wrong
        bad = msgspec.structs.replace(good, **{column: numbers.tobytes()})
        records = [InputRecord(SERVED, 0, at, one.encode(), START_MS) for at, one in enumerate((good, bad, good))]
        found = served_batch(records, SPEC, MAX_AHEAD_MS)
        assert found.rows.impression_id.tolist() == [1, 2, 3, 1, 3, 1, 2, 3]
        assert found.records.rows.tolist() == [3, 2, 3]
        assert [(one.offset, one.reason) for one in found.rejects] == [(1, "schema")]
