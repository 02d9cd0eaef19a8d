"""Records of the inputs and of the examples topic, as the join and the readers of examples take them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import msgspec
import numpy as np

from calibration.config import CalibratorConfig
from learners.deepfm.model import DeepFM
from learners.examples.archive import read_examples
from learners.features.rows import Rows
from learners.features.session_state import COUNTER, USER, sums_of
from learners.features.shape import ModelShape
from stream.archive.part_buffer import ArchiveConfig, PartBuffer
from stream.archive.store import DirectoryArchive
from stream.calibrate.calibrator import PartitionCalibrator
from stream.join.arrival import Clock
from stream.join.batches import events_batch, served_batch
from stream.join.rejects import Reject
from stream.kafka import inflate
from stream.kafka.input_record import InputRecord
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows
from stream.records.examples_codec import decode_examples
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, SERVED
from stream.records.validity import faults, learnable, possible
from stream.sessions.fold import SessionFold, SessionStates
from tests.fuzz.mutate import json_changed, msgpack_changed
from tests.fuzz.target import TAKEN, Target, promised, rejected
from tests.stream.pipeline import SMALL, SPEC, START_MS, events, example_rows, serve

AHEAD_MS = 3_600_000
REASONS = ("malformed", "schema", "spec", "time", "settled", "not_finite")
_LATEST_MS = START_MS + AHEAD_MS
_YEAR_2000_MS, _YEAR_2100_MS = 946_684_800_000, 4_102_444_800_000


# ------------------------------------------------------------------------------------------------------ public events


def _event(topic: str, key: int) -> bytes:
    event = {"impression_id": str(key), "ts_ms": START_MS + key, "user_key": str(key * 7)}
    if topic == IMPRESSIONS:
        event["position"] = 2
    if topic == CONVERSIONS:
        event["value"] = 12.5
    return msgspec.json.encode(event)


@cache
def _events(topic: str) -> list[bytes]:
    rows = [(key, START_MS + key, key * 7) for key in range(1, 5)]
    return [
        _event(topic, 11),
        _event(topic, 12).replace(b'"12"', b"12").replace(b'"84"', b"84"),
        b'{"watermark_ms": %d}' % START_MS,
        events(rows).encode(),
        events([], START_MS).encode(),
    ]


def _run_events(topic: str, value: bytes) -> str:
    records = [
        InputRecord(topic, 0, at, one, START_MS) for at, one in enumerate((_event(topic, 1), value, _event(topic, 2)))
    ]
    found = events_batch(topic, records, AHEAD_MS, Clock(START_MS))
    rows, counts = found.rows, found.records.rows.tolist()
    promised(len(rows) == sum(counts) and counts[0] == counts[2] == 1, "a good event beside it was lost")
    promised(rows.impression_id.all(), "an event of no impression was taken")
    promised(((rows.ts_ms >= _YEAR_2000_MS) & (rows.ts_ms <= _LATEST_MS)).all(), "an event of no time was taken")
    promised(np.isfinite(rows.value).all(), "a value that is not finite was taken")
    promised(0 <= int(found.records.promise_ms[1]) <= _LATEST_MS, "a promise beyond its record was taken")
    promised(rows.user_key.dtype == np.uint64 and rows.position.dtype == np.int32, "columns have other types")
    return _reason(found.rejects, counts[1] or int(found.records.promise_ms[1]))


def _reason(rejects: Sequence[Reject], taken: int) -> str:
    promised(all(one.offset == 1 for one in rejects), "another record was rejected for it")
    reasons = [rejected(one.reason, one.detail, REASONS) for one in rejects]
    return TAKEN if taken or not reasons else reasons[0]


def _events_changed(value: bytes, source: object) -> bytes:
    return (json_changed if value[:1] == b"{" else msgpack_changed)(value, source)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- served


@cache
def _served() -> list[bytes]:
    made = [serve(range(1, 4), [START_MS] * 3, 1, first_id=1), serve([9], [START_MS - 5_000], 1, first_id=77)]
    return [record.encode() for shown in made for record in shown.record.values()]


def _run_served(value: bytes) -> str:
    good = _served()[1]
    records = [InputRecord(SERVED, 0, at, one, START_MS) for at, one in enumerate((good, value, good))]
    found = served_batch(records, SPEC, AHEAD_MS, Clock(START_MS))
    rows, counts = found.rows, found.records.rows.tolist()
    promised(len(rows) == sum(counts) and counts[0] == counts[2] == 1, "a good record beside it was lost")
    promised(rows.row_request.max(initial=0) < len(rows.ts_ms), "a row of no request was taken")
    served_ms = rows.served_ms
    promised(((served_ms >= _YEAR_2000_MS) & (served_ms <= _LATEST_MS)).all(), "a row of no time was taken")
    promised(rows.impression_id.all(), "a row of no impression was taken")
    promised(((rows.model_version >= 0) & (rows.model_version <= 10**11)).all(), "a row of no model was taken")
    for scores in (rows.p, rows.propensity):
        promised(((scores >= 0) & (scores <= 1)).all(), "a share that is none was taken")
    promised(np.isfinite(rows.logit).all() and not np.isinf(rows.conversion_logit).any(), "a logit that is none")
    promised(rows.ad_ids.shape == (len(rows), len(SPEC.ad_fields)), "a row of other columns was taken")
    return _reason(found.rejects, counts[1] or int(found.records.promise_ms[1]))


# ------------------------------------------------------------------------------------------------------------ examples


@cache
def _examples() -> list[bytes]:
    rows = example_rows(5, seed=3, kind=np.array([0, 1, 0, 2, 1], np.uint8))
    return [rows.to_record(SPEC.hash, START_MS).encode(), rows.take(slice(0, 1)).to_record(SPEC.hash, 0).encode()]


def _decoded(value: bytes) -> tuple[ExampleRows, int] | str:
    try:
        return decode_examples(value, SPEC)
    except RecordError as error:
        return rejected(error.reason, error.detail, REASONS)


def _run_examples(value: bytes) -> str:
    found = _decoded(value)
    if isinstance(found, str):
        return found
    rows, watermark_ms = found
    promised(0 <= watermark_ms < _YEAR_2100_MS, "a watermark of no time was taken")
    for fault in faults(rows):
        rejected(fault.reason, fault.detail, REASONS)
    kept = rows.take(learnable(rows, ("click", "conversion")))
    promised(len(kept) == len(rows) - sum(len(one.rows) for one in faults(rows)), "a fault is counted twice, or never")
    for name in ("ts_ms", "known_ms", "delay_ms", "click_produced_ms"):
        times = getattr(kept, name)
        promised(((times >= 0) & (times < _YEAR_2100_MS)).all(), f"{name} of no time would be learned")
    promised(np.isin(kept.kind, (0, 1, 2)).all(), "an unknown kind would be learned")
    promised(((kept.model_version >= 0) & (kept.model_version <= 10**11)).all(), "a row of no model would be learned")
    promised(np.isfinite(kept.dense).all() and np.isfinite(kept.value).all(), "what is not finite would be learned")
    return TAKEN if len(kept) or not len(rows) else "row"


def _archive(rows: ExampleRows, watermark_ms: int) -> None:
    """What the archiver writes can be read again."""
    buffer = PartBuffer(0, 5, ArchiveConfig(archive_rows=1))
    for part in [*buffer.add(rows, 5, watermark_ms), *buffer.take()]:
        with tempfile.TemporaryDirectory() as folder:
            DirectoryArchive(Path(folder)).write(part, SPEC)
            promised(len(read_examples(folder)) == len(part.rows), "rows of an archive are lost")


def _run_learned(value: bytes) -> str:
    found = _decoded(value)
    if isinstance(found, str):
        return found
    rows, watermark_ms = found
    _archive(rows, watermark_ms)
    fold = SessionFold(SPEC)
    sound = possible(rows)
    keys = fold.keys([sound])
    states = SessionStates(keys, np.zeros(len(keys.users), USER), np.zeros(len(keys.counters), COUNTER))
    folded = fold.fold(states, [sound])
    promised(np.isfinite(sums_of(folded.counters)).all(), "a counter is not finite")
    calibrator = PartitionCalibrator(0, CalibratorConfig(), 1.0)
    calibrator.step(rows, 0, watermark_ms)
    record = calibrator.take_publication(at_once=True)
    if record is not None:
        PartitionCalibrator(0, CalibratorConfig(), 1.0, record)  # what it publishes can be gone on from
    loop = LearningLoop(_model(), LearningConfig(learn_batch_rows=2, learn_interval_s=1.0), 1)
    loop.step(rows, 0, 0, watermark_ms)
    promised(all(np.isfinite(array).all() for array in loop.model.state().values() if array.dtype.kind == "f"),
             "weights are not finite")  # fmt: skip
    promised(np.isfinite(loop.model.predict_many(_asked())).all(), "the model answers no number")
    return TAKEN


@cache
def _state() -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in DeepFM(SMALL, ModelShape.of(SPEC)).state().items()}


def _model() -> DeepFM:
    return DeepFM.from_state(SMALL, ModelShape.of(SPEC), _state())


@cache
def _asked() -> Rows:
    return example_rows(4, seed=4).rows()


# --------------------------------------------------------------------------------------------------- compressed batches


_INFLATE = {
    "gzip": inflate.inflate_gzip, "snappy": inflate.inflate_snappy, "lz4": inflate.inflate_lz4,
    "zstd": inflate.inflate_zstd,
}  # fmt: skip


@cache
def _compressed() -> list[bytes]:
    import gzip

    import cramjam

    batch = events([(key, START_MS, 1) for key in range(200)]).encode()
    java = bytes(cramjam.snappy.compress_raw(batch))
    return [
        b"g" + gzip.compress(batch),
        b"s" + java,
        b"s" + b"\x82SNAPPY\0\0\0\0\1\0\0\0\1" + len(java).to_bytes(4, "big") + java,
        b"l" + bytes(cramjam.lz4.compress(batch)),
        b"z" + bytes(cramjam.zstd.compress(batch)),
    ]


def _run_inflate(value: bytes) -> str:
    codec = {"g": "gzip", "s": "snappy", "l": "lz4", "z": "zstd"}.get(value[:1].decode("latin-1"))
    if codec is None:
        return "codec"
    try:
        found = _INFLATE[codec](value[1:])
    except inflate.InflateError as error:
        return rejected("malformed", str(error), REASONS)
    promised(len(found) <= 64 << 20, "more than the bound came out")
    return TAKEN


_PUBLIC = {"impressions": IMPRESSIONS, "clicks": CLICKS, "conversions": CONVERSIONS}
TARGETS = [
    *(Target(name, partial(_run_events, topic), partial(_events, topic), _events_changed)
      for name, topic in _PUBLIC.items()),
    Target("served", _run_served, _served, msgpack_changed),
    Target("examples", _run_examples, _examples, msgpack_changed),
    Target("examples_learned", _run_learned, _examples, msgpack_changed),
    Target("compressed_batch", _run_inflate, _compressed),
]  # fmt: skip
