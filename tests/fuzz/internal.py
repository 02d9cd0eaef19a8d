"""Records of the stream's own topics: weights and calibration as serving and the workers take them, the journal."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from random import Random
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load, save

from calibration.config import CalibratorConfig
from calibration.curve import CalibrationMap
from calibration.slice_map import SliceMap
from calibration.slices import SlicePlan
from learners.deepfm.model import DeepFM
from learners.features.shape import ModelShape
from serving.calibrator import HotCalibrator
from serving.freshness import Freshness
from serving.model import HotModel, OfferResult
from stream.calibrate.calibrator import PartitionCalibrator
from stream.records.columns import RecordError
from stream.records.deltas import DeltaSpecError, to_parts
from stream.records.internal import decode_calibration, decode_journal, decode_weights
from stream.records.seal import sealed
from stream.records.wire import (
    CalibrationRecord,
    ConversionDelays,
    DeltaPart,
    JournalRecord,
    OffsetRange,
    Silence,
    SnapshotNotice,
)
from tests.calibration.known_truth import PLAN
from tests.fuzz.mutate import arrays_changed, changed, column, packed, sealed_again
from tests.fuzz.records import REASONS
from tests.fuzz.target import TAKEN, Target, promised, rejected
from tests.serving.test_calibrator import GRID, record, state_of
from tests.stream.pipeline import SMALL, SPEC, START_MS, example_rows

PARTITIONS = 4
_MOST_VERSION = 10**11
_YEAR_2100_MS = 4_102_444_800_000
_HEAD, _COHORTS = struct.Struct("<4sII"), struct.Struct("<4sHHIqqI")
_SHAPE = ModelShape.of(SPEC)
_KNOTS = GRID.astype(np.float64)


# ------------------------------------------------------------------------------------------------------------- weights


@cache
def _state() -> dict[str, NDArray[Any]]:
    return {name: np.array(array) for name, array in DeepFM(SMALL, _SHAPE).state().items()}


@cache
def _weights() -> list[bytes]:
    model = DeepFM.from_state(SMALL, _SHAPE, _state())
    rows = example_rows(8, seed=5)
    model.learn_many(rows.rows(), rows.kind == 1)
    delta = model.changes(version=1, parent=0, watermark_ms=START_MS, newest_event_ms=START_MS, clicks_produced_ms=[5])
    whole, parts = to_parts(delta, 1 << 20), to_parts(delta, 2_000)
    heartbeat = DeltaPart(
        spec_hash=SPEC.hash, version=0, parent=0, part=0, parts=1, checksum=0, watermark_ms=START_MS,
        newest_event_ms=START_MS, clicks_produced_ms=b"", payload=b"",
    )  # fmt: skip
    notice = SnapshotNotice(spec_hash=SPEC.hash, version=3, url="/x/v3", sha256="0" * 64, watermark_ms=START_MS)
    return [sealed(one) for one in (*whole, *whole, heartbeat, notice, parts[0])]


def _run_weights(value: bytes) -> str:
    try:
        part = decode_weights(value)
    except RecordError as error:
        return rejected(error.reason, error.detail, REASONS)
    promised(0 <= part.version <= _MOST_VERSION and 0 <= part.watermark_ms < _YEAR_2100_MS, "a version of no line")
    if isinstance(part, SnapshotNotice):
        return TAKEN
    promised(0 <= part.part < part.parts and part.parent <= part.version, "a part of no delta was taken")
    promised(len(part.clicks_produced_ms) % 8 == 0, "half a click time was taken")
    model = DeepFM.from_state(SMALL, _SHAPE, _state())
    hot = HotModel(model, spec_hash=SPEC.hash, version=0, watermark_ms=0, freshness=Freshness())
    try:
        result = hot.offer(part)
    except DeltaSpecError as error:
        return rejected("spec", str(error), REASONS)
    promised(hot.version == (part.version if result is OfferResult.SWAPPED else 0), "another version is served")
    for name, array in model.state().items():
        promised(array.dtype.kind != "f" or np.isfinite(array).all(), f"{name} is not finite")
    if result is OfferResult.SWAPPED:
        hot.freshness.predicted(START_MS)
    if result is OfferResult.GAP:
        return rejected("schema", hot.fault, REASONS) if hot.fault else "gap"
    return TAKEN


def _weights_changed(value: bytes, source: Random) -> bytes:
    raw = msgspec.msgpack.decode(value)
    for _ in range(source.randint(1, 2)):
        if source.randrange(2) and isinstance(raw, dict) and raw.get("payload"):
            raw["payload"] = _tensors_changed(raw["payload"], source)
            if source.randrange(8):
                raw["checksum"] = xxhash.xxh3_64_intdigest(raw["payload"])
        else:
            raw = changed(raw, source)
    return sealed_again(raw) if source.randrange(8) else packed(raw)


def _tensors_changed(payload: bytes, source: Random) -> bytes:
    if source.randrange(4) == 0:
        return column(payload, source)
    return save({name: np.ascontiguousarray(one) for name, one in arrays_changed(load(payload), source).items()})


# --------------------------------------------------------------------------------------------------------- calibration


@cache
def _calibrations() -> list[bytes]:
    plain, sliced = state_of(1, seconds=20), state_of(2, PLAN, seconds=20)
    with_conversions = msgspec.structs.replace(
        record(1, 5, plain, START_MS, line=2), conversion_state=_conversions(), converted=b"\1" * 16
    )
    return [sealed(one) for one in (record(0, 3, plain, START_MS), with_conversions, record(2, 1, sliced, START_MS))]


def _conversions() -> bytes:
    calibrator = PartitionCalibrator(0, CalibratorConfig(), 1.0)
    return calibrator.conversions.to_bytes()


@cache
def _good(partition: int, sliced: bool) -> CalibrationRecord:
    return record(partition, 2, state_of(3, PLAN if sliced else SlicePlan(), seconds=20), START_MS)


def _run_calibration(value: bytes) -> str:
    try:
        found = decode_calibration(value, PARTITIONS)
    except RecordError as error:
        return rejected(error.reason, error.detail, REASONS)
    promised(0 <= found.partition < PARTITIONS and 0 <= found.version <= _MOST_VERSION, "a state of no partition")
    promised(0 <= found.watermark_ms < _YEAR_2100_MS and 0 <= found.next_offset <= 2**62, "a state of no log")
    answers = [_offered(found, sliced) for sliced in (False, True)]
    return TAKEN if TAKEN in answers else answers[0]


def _offered(found: CalibrationRecord, sliced: bool) -> str:
    """What serving and a worker make of it, under one plan of slices."""
    plan = PLAN if sliced else SlicePlan()
    other = _good((found.partition + 1) % PARTITIONS, sliced)
    hot = HotCalibrator(refit_interval_s=0, plan=plan)
    hot.offer(other)
    try:
        hot.offer(found, hot.decoded(found))
        reason = TAKEN
    except ValueError as error:
        reason = rejected("schema", str(error), REASONS)
    _check_map(hot.map)
    _check_map(hot.conversion_map)
    hot.figures()
    hot.offer(msgspec.structs.replace(other, version=3, watermark_ms=START_MS + 60_000))
    _check_map(hot.map)
    try:
        PartitionCalibrator(found.partition, CalibratorConfig(), 1.0, found, plan=plan)
    except ValueError as error:
        rejected("schema", str(error), REASONS)
    return reason


def _check_map(found: SliceMap) -> None:
    p = found.apply(GRID)
    promised(np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all(), "the map answers no probability")
    promised((np.diff(found.log_odds_of(GRID)) > 0).all(), "the map reorders ads")


def _calibration_changed(value: bytes, source: Random) -> bytes:
    raw = msgspec.msgpack.decode(value)
    for _ in range(source.randint(1, 2)):
        if source.randrange(4) and isinstance(raw, dict) and isinstance(raw.get("state"), bytes):
            name = "conversion_state" if raw.get("conversion_state") and source.randrange(2) else "state"
            raw[name] = head_changed(raw[name], source)
        else:
            raw = changed(raw, source)
    return sealed_again(raw)


def head_changed(state: bytes, source: Random) -> bytes:
    """A head's calibration state with a change in it, and the checksums that such a state has."""
    raw = msgspec.msgpack.decode(zlib.decompress(state[_HEAD.size :]))
    if source.randrange(2):
        name = source.choice(("evidence", "instruments", "gains"))
        raw[name] = _cohorts_changed(raw[name], source)
    else:
        raw = changed(raw, source)
    content = zlib.compress(packed(raw), 1)
    return _HEAD.pack(b"MSCH", 1, zlib.crc32(content)) + content


def _cohorts_changed(table: bytes, source: Random) -> bytes:
    magic, fmt, columns, rows, now_ms, since_ms, _ = _COHORTS.unpack_from(table)
    planes = zlib.decompress(table[_COHORTS.size :])
    how = source.randrange(4)
    if how == 0:
        rows = source.choice((0, 1, rows + 1, 2**20, 2**31))
    elif how == 1:
        columns = source.choice((0, 1, columns + 1, 60_000))
    elif how == 2:
        now_ms, since_ms = source.choice(((0, 0), (-1, 0), (2**62, 0), (since_ms, now_ms), (now_ms, 2**63 - 1)))
    else:
        planes = column(planes, source)
    content = zlib.compress(planes, 1)
    return _COHORTS.pack(magic, fmt, columns, rows, now_ms, since_ms, zlib.crc32(content)) + content


def _run_brought(value: bytes) -> str:
    """The calibration that a base brings, and the records that come after it."""
    hot = HotCalibrator(refit_interval_s=0)
    hot.offer(_good(0, False))
    try:
        hot.serve_line(1, value)
        reason = TAKEN
    except ValueError as error:
        reason = rejected("schema", str(error), REASONS)
    _check_map(hot.map)
    hot.offer(msgspec.structs.replace(_good(1, False), version=9))
    _check_map(hot.map)
    return reason


def _run_map_file(value: bytes) -> str:
    try:
        found = CalibrationMap.from_bytes(value)
    except ValueError as error:
        return rejected("schema", str(error), REASONS)
    p = found.apply(GRID)
    promised(np.isfinite(p).all() and ((p >= 0) & (p <= 1)).all(), "the map answers no probability")
    return TAKEN


def _map_changed(value: bytes, source: Random) -> bytes:
    header = struct.Struct("<4sHxxIqI")
    magic, fmt, count, version, _ = header.unpack_from(value)
    knots = column(value[header.size :], source)
    count = source.choice((count, len(knots) // 16, 0, 2**31))
    return header.pack(magic, fmt, count, version, zlib.crc32(knots)) + knots


# ------------------------------------------------------------------------------------------------------------- journal


@cache
def _journals() -> list[bytes]:
    span = OffsetRange(partition=1, from_offset=3, from_row=0, to_offset=4, to_row=7)
    step = JournalRecord(version=7, rows=9, ranges=[span, span], watermark_ms=START_MS)
    full = JournalRecord(
        version=8, rows=9, ranges=[span], watermark_ms=START_MS, ahead_ms=START_MS, exposure_rate=0.5, skipped=True,
        silences=[Silence(START_MS, 2**62), Silence(1, 2)], paid_clicks=3,
        conversion_delays=ConversionDelays(86_400.0, 3_600.0, 1.5),
    )  # fmt: skip
    return [sealed(step), sealed(full)]


def _run_journal(value: bytes) -> str:
    try:
        found = decode_journal(value, PARTITIONS)
    except RecordError as error:
        return rejected(error.reason, error.detail, REASONS)
    promised(1 <= found.version <= _MOST_VERSION and found.rows >= 0, "a step of no version was taken")
    promised(0 < found.exposure_rate <= 1 and 0 <= found.watermark_ms < _YEAR_2100_MS, "a step that none was")
    for one in found.ranges:
        promised(0 <= one.partition < PARTITIONS, "rows of no partition would be learned")
        promised(0 <= one.from_offset <= one.to_offset <= 2**62, "rows of no log would be learned")
        promised(one.from_row >= 0 and one.to_row >= 0, "rows before the first would be learned")
    for silence in found.silences:
        promised(0 <= silence.from_ms < _YEAR_2100_MS and silence.to_ms >= 0, "a silence of no time was taken")
    if found.conversion_delays is not None:
        numbers = msgspec.structs.astuple(found.conversion_delays)
        promised(np.isfinite(numbers).all() and min(numbers) > 0, "delays that none has were taken")
    return TAKEN


def _journal_changed(value: bytes, source: Random) -> bytes:
    raw = msgspec.msgpack.decode(value)
    for _ in range(source.randint(1, 3)):
        raw = changed(raw, source)
    return sealed_again(raw)


TARGETS = [
    Target("weights", _run_weights, _weights, _weights_changed),
    Target("calibration", _run_calibration, _calibrations, _calibration_changed),
    Target("journal", _run_journal, _journals, _journal_changed),
    Target("snapshot_calibration", _run_brought, lambda: [state_of(1, seconds=20).to_bytes()], head_changed),
    Target("map_file", _run_map_file, lambda: [CalibrationMap(_KNOTS, _KNOTS * 0.5).to_bytes()], _map_changed),
]
