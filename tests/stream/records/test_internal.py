"""Records of the stream's own topics that cannot be right are told apart from those that can."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.examples.kinds import CLICK, EXPOSURE
from stream.records.columns import RecordError
from stream.records.examples_codec import decode_examples
from stream.records.internal import decode_calibration, decode_journal, decode_weights
from stream.records.seal import sealed
from stream.records.served import decode_served
from stream.records.validity import faults, possible
from stream.records.wire import (
    CalibrationRecord,
    ConversionDelays,
    DeltaPart,
    JournalRecord,
    OffsetRange,
    Silence,
    SnapshotNotice,
)
from tests.stream.pipeline import SPEC, START_MS, example_rows, serve

RANGE = OffsetRange(partition=1, from_offset=3, from_row=2, to_offset=5, to_row=0)
DELTA = DeltaPart(
    spec_hash="abc", version=8, parent=7, part=0, parts=1, checksum=1, watermark_ms=START_MS,
    newest_event_ms=START_MS, clicks_produced_ms=np.array([START_MS]).tobytes(), payload=b"x",
)  # fmt: skip
NOTICE = SnapshotNotice(spec_hash="abc", version=8, url="/tmp/s", sha256="0", watermark_ms=START_MS)  # noqa: S108
STATE = CalibrationRecord(partition=1, version=4, rows=9, watermark_ms=START_MS, state=b"s", next_offset=6)
STEP = JournalRecord(
    version=8, rows=3, ranges=[RANGE], watermark_ms=START_MS, silences=[Silence(START_MS, 2**62)],
    conversion_delays=ConversionDelays(1.0, 2.0, 3.0),
)  # fmt: skip
TOPICS: dict[str, tuple[Callable[[bytes | None], Any], Any]] = {
    "delta": (decode_weights, DELTA),
    "snapshot": (decode_weights, NOTICE),
    "calibration": (lambda value: decode_calibration(value, 4), STATE),
    "journal": (lambda value: decode_journal(value, 4), STEP),
}


@pytest.mark.parametrize("kind", TOPICS)
def test_a_record_is_read_with_its_seal_and_from_before_there_was_one(kind: str) -> None:
    """The seal is the only difference."""
    decode, record = TOPICS[kind]
    assert decode(msgspec.msgpack.encode(record)) == record
    of_before = msgspec.to_builtins(record, builtin_types=(bytes,))
    of_before.pop("seal", None)
    assert decode(msgspec.msgpack.encode(of_before)) == record
    read = decode(sealed(record))
    assert read.seal
    assert msgspec.structs.replace(read, seal=0) == record


@pytest.mark.parametrize("kind", TOPICS)
@given(data=st.data())
def test_a_sealed_record_with_any_flipped_bit_is_refused(kind: str, data: st.DataObject) -> None:
    """Header, payload or the seal itself: one checksum covers them all."""
    decode, record = TOPICS[kind]
    value = bytearray(sealed(record))
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RecordError):
        decode(bytes(value))


@pytest.mark.parametrize("kind", TOPICS)
def test_a_seal_whose_name_was_altered_is_not_read_as_none(kind: str) -> None:
    """Also where the name takes another length, and swallows all of the number but a last byte that is one itself."""
    decode, record = TOPICS[kind]
    for later in range(32):  # other numbers, half of them with such a last byte
        value = sealed(msgspec.structs.replace(record, watermark_ms=START_MS + later))
        for at, bit in product(range(len(value) - 14, len(value)), range(8)):
            altered = bytearray(value)
            altered[at] ^= 1 << bit
            with pytest.raises(RecordError):
                decode(bytes(altered))


@pytest.mark.parametrize("kind", TOPICS)
@given(data=st.data())
def test_whatever_bytes_come_they_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Nothing but RecordError: mutations of sound records without a seal, cut, or drawn at random."""
    decode, record = TOPICS[kind]
    value = bytearray(msgspec.msgpack.encode(record))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    for one in (bytes(value), bytes(value[: data.draw(st.integers(0, len(value)))]), data.draw(st.binary())):
        with suppress(RecordError):
            decode(one)


@pytest.mark.parametrize("value", [None, b"", b"\xc1junk", b"{}", b"\x80", b"\x91" * 5_000])
@pytest.mark.parametrize("kind", TOPICS)
def test_tombstones_and_garbage_are_refused(kind: str, value: bytes | None) -> None:
    """Nested without end, too."""
    with pytest.raises(RecordError):
        TOPICS[kind][0](value)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("delta", {"version": 2**63}, "schema"),
        ("delta", {"version": -1}, "schema"),
        ("delta", {"parent": 9}, "schema"),
        ("delta", {"part": 1}, "schema"),
        ("delta", {"parts": 0}, "schema"),
        ("delta", {"parts": 2**40}, "schema"),
        ("delta", {"watermark_ms": 2**62}, "time"),
        ("delta", {"newest_event_ms": -1}, "time"),
        ("delta", {"clicks_produced_ms": b"123"}, "schema"),
        ("delta", {"clicks_produced_ms": np.array([2**62]).tobytes()}, "time"),
        ("snapshot", {"version": 2**63}, "schema"),
        ("snapshot", {"watermark_ms": 2**63}, "time"),
        ("calibration", {"partition": 4}, "schema"),
        ("calibration", {"partition": 999}, "schema"),
        ("calibration", {"partition": -1}, "schema"),
        ("calibration", {"version": 2**63}, "schema"),
        ("calibration", {"next_offset": 2**63}, "schema"),
        ("calibration", {"line": -3}, "schema"),
        ("calibration", {"watermark_ms": 4_102_444_800_000}, "time"),
        ("calibration", {"converted": b"1234567"}, "schema"),
        ("journal", {"version": 2**63}, "schema"),
        ("journal", {"version": 0}, "schema"),
        ("journal", {"exposure_rate": float("nan")}, "schema"),
        ("journal", {"exposure_rate": 0.0}, "schema"),
        ("journal", {"ahead_ms": -5}, "time"),
        ("journal", {"paid_clicks": -1}, "schema"),
        ("journal", {"silences": [Silence(-1, 5)]}, "time"),
        ("journal", {"conversion_delays": ConversionDelays(1.0, float("inf"), 1.0)}, "schema"),
        ("journal", {"ranges": [msgspec.structs.replace(RANGE, partition=4)]}, "schema"),
        ("journal", {"ranges": [msgspec.structs.replace(RANGE, to_offset=2)]}, "schema"),
        ("journal", {"ranges": [msgspec.structs.replace(RANGE, to_offset=2**63)]}, "schema"),
    ],
)
def test_values_that_no_record_has_are_named(kind: str, changes: dict[str, Any], reason: str) -> None:
    """With a right seal, too: it says that nothing was altered, not that it is true."""
    decode, record = TOPICS[kind]
    for encode in (sealed, msgspec.msgpack.encode):
        with pytest.raises(RecordError) as refused:
            decode(encode(msgspec.structs.replace(record, **changes)))
        assert refused.value.reason == reason
        assert next(iter(changes)) in refused.value.detail or "range" in refused.value.detail


def test_an_examples_record_of_no_time_or_with_labels_that_contradict_its_kinds_is_refused() -> None:
    """It is one bad record, not the log of an older release, which would end the worker."""
    record = example_rows(2, seed=1, kind=np.array([EXPOSURE, CLICK], np.uint8)).to_record(SPEC.hash, START_MS)
    with pytest.raises(RecordError, match="watermark_ms"):
        decode_examples(msgspec.structs.replace(record, watermark_ms=2**62).encode(), SPEC)
    raw = msgspec.msgpack.decode(record.encode())
    for label, reason in ((b"\0\0", "schema"), (b"\0\2", "schema"), (b"\1", "schema"), (b"\0\1", "settled")):
        with pytest.raises(RecordError) as refused:
            decode_examples(msgspec.msgpack.encode({**raw, "label": label}), SPEC)
        assert refused.value.reason == reason
    invalid = bytearray(record.encode())
    invalid[invalid.index(SPEC.hash.encode())] = 0xFF  # no UTF-8
    for value in (bytes(invalid), None, b"", b"\x91" * 5_000):
        with pytest.raises(RecordError):
            decode_examples(value, SPEC)


@pytest.mark.parametrize("name", ["model_version", "map_version"])
@pytest.mark.parametrize("version", [2**63, -1])
def test_a_served_record_of_an_impossible_version_is_refused(name: str, version: int) -> None:
    """It has no place in a column of 64-bit numbers."""
    (record,) = serve([1], [START_MS], 1, 1).record.values()
    with pytest.raises(RecordError, match=f"{name}={version}"):
        decode_served(msgspec.structs.replace(record, **{name: version}).encode(), SPEC)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("kind", 9, "schema"),
        ("ts_ms", 2**62, "time"),
        ("known_ms", -1, "time"),
        ("delay_ms", -(2**63), "time"),
        ("click_produced_ms", 2**62, "time"),
        ("model_version", 2**62, "schema"),
        ("value", np.inf, "schema"),
    ],
)
def test_a_row_that_no_join_has_written_is_named_and_left_out(name: str, value: float, reason: str) -> None:
    """The others of its record are kept, the same object where all are sound."""
    rows = example_rows(5, seed=1)
    assert possible(rows) is rows
    column = getattr(rows, name).copy()
    column[3] = value
    bad = type(rows)(**{**rows.columns(), name: column})
    (fault,) = faults(bad)
    assert (fault.reason, fault.rows.tolist()) == (reason, [3])
    assert f"row 3 with {name} {column[3]}" in fault.detail
    assert possible(bad).impression_id.tolist() == np.delete(rows.impression_id, 3).tolist()
