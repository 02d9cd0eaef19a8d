"""From the bytes of the stream's own topics to records that can be right: weights, calibration, journal.

Who writes them is our own, yet anybody with access to the broker can. Every reader decodes them here, and puts aside
what raises RecordError: its reasons are those of `stream.records.limits`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from stream.records.columns import RecordError
from stream.records.limits import LAST_OFFSET, LAST_VERSION, LATEST_MS, check_size
from stream.records.seal import checked
from stream.records.topics import MAX_PARTITIONS
from stream.records.wire import CalibrationRecord, DeltaPart, JournalRecord, OffsetRange, SnapshotNotice

NOT_ENDED_MS = 2**62
"""The end of a silence that lasts, see `stream.records.wire.Silence`."""

_MOST_ROWS = 2**40
_MOST_PARTS = 4_096  # of 4 MiB: more than a table of 20 million rows
_MOST_RANGES = 65_536

_weights = msgspec.msgpack.Decoder(DeltaPart | SnapshotNotice)
_calibration = msgspec.msgpack.Decoder(CalibrationRecord)
_journal = msgspec.msgpack.Decoder(JournalRecord)


def decode_weights(value: bytes | None) -> DeltaPart | SnapshotNotice:
    """Return a record of the weights topic. Raises RecordError."""
    record: DeltaPart | SnapshotNotice = _decoded(_weights, value, "weights")
    _check("version", record.version, LAST_VERSION)
    _check_time("watermark_ms", record.watermark_ms)
    if isinstance(record, SnapshotNotice):
        return record
    _check("parent", record.parent, record.version)
    _check("parts", record.parts, _MOST_PARTS, least=1)
    _check("part", record.part, record.parts - 1)
    _check_time("newest_event_ms", record.newest_event_ms)
    clicks_ms = _int64s("clicks_produced_ms", record.clicks_produced_ms)
    if len(clicks_ms):
        _check_time("clicks_produced_ms", int(clicks_ms.min()))
        _check_time("clicks_produced_ms", int(clicks_ms.max()))
    return record


def decode_calibration(value: bytes | None, partitions: int = MAX_PARTITIONS) -> CalibrationRecord:
    """Return a record of the calibration topic of a stream of so many partitions; its states are not decoded here.

    Raises RecordError.
    """
    record: CalibrationRecord = _decoded(_calibration, value, "calibration")
    _check("partition", record.partition, partitions - 1)
    _check("version", record.version, LAST_VERSION)
    _check("line", record.line, LAST_VERSION)
    _check("rows", record.rows, _MOST_ROWS)
    _check("next_offset", record.next_offset, LAST_OFFSET)
    _check_time("watermark_ms", record.watermark_ms)
    _int64s("converted", record.converted)
    return record


def decode_journal(value: bytes | None, partitions: int = MAX_PARTITIONS) -> JournalRecord:
    """Return a record of the journal of a stream of so many partitions. Raises RecordError."""
    record: JournalRecord = _decoded(_journal, value, "the journal")
    _check("version", record.version, LAST_VERSION, least=1)
    _check("rows", record.rows, _MOST_ROWS)
    _check("paid_clicks", record.paid_clicks, _MOST_ROWS)
    _check_time("watermark_ms", record.watermark_ms)
    _check_time("ahead_ms", record.ahead_ms)
    if not 0 < record.exposure_rate <= 1:
        raise _beyond("exposure_rate", record.exposure_rate, "above 0 and at most 1")
    _check("ranges", len(record.ranges), _MOST_RANGES)
    for one in record.ranges:
        _check_range(one, partitions)
    for silence in record.silences:
        _check_time("silences.from_ms", silence.from_ms)
        if silence.to_ms != NOT_ENDED_MS:
            _check_time("silences.to_ms", silence.to_ms)
    if (delays := record.conversion_delays) is not None:
        for name in ("horizon_s", "median_s", "sigma"):
            if not 0 < (number := getattr(delays, name)) < LATEST_MS:
                raise _beyond(f"conversion_delays.{name}", number, "positive and finite")
    return record


def _check_range(one: OffsetRange, partitions: int) -> None:
    _check("ranges.partition", one.partition, partitions - 1)
    for name in ("from_offset", "to_offset"):
        _check(f"ranges.{name}", getattr(one, name), LAST_OFFSET)
    for name in ("from_row", "to_row"):
        _check(f"ranges.{name}", getattr(one, name), _MOST_ROWS)
    start, end = (one.from_offset, one.from_row), (one.to_offset, one.to_row)
    if start > end:
        raise RecordError("schema", f"a range of partition {one.partition} begins at {start} and ends before, at {end}")


def _decoded(decoder: msgspec.msgpack.Decoder[Any], value: bytes | None, what: str) -> Any:
    if not value:
        raise RecordError("malformed", f"the record is empty, a tombstone; expected one of {what}")
    check_size(value)
    try:
        record = decoder.decode(value)
    except msgspec.ValidationError as error:
        raise RecordError("schema", f"not a record of {what}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise RecordError("malformed", f"not read as a record of {what}: {error}") from error
    return checked(record, value)


def _check(name: str, number: int, most: int, *, least: int = 0) -> None:
    if not least <= number <= most:
        raise _beyond(name, number, f"from {least} to {most}")


def _check_time(name: str, at_ms: int) -> None:
    if not 0 <= at_ms < LATEST_MS:
        raise RecordError("time", f"{name}={at_ms} is not from 0 to {LATEST_MS} (2100) in Unix milliseconds")


def _beyond(name: str, number: float, bounds: str) -> RecordError:
    return RecordError("schema", f"{name}={number} must be {bounds}: no record of this stream has it")


def _int64s(name: str, data: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    if len(data) % 8:
        raise RecordError("schema", f"{name} holds {len(data)} bytes, which are no whole 64-bit numbers")
    return np.frombuffer(data, "<i8")
