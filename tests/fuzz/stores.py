"""What lies in Redis and in the folder of snapshots, as serving and a restarted worker read it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import load, save

from learners.features.encode import Encoder, Request
from learners.features.session_state import COUNTER, USER, SessionView, sums_of
from learners.nn.heads import Head
from learners.snapshots.manifest import SnapshotError
from learners.snapshots.snapshot import Snapshot, check_columns, load_snapshot, write_snapshot
from serving.snapshots import NoSnapshotError, load_newest
from stream.clicks.stored_clicks import packed, packed_times, unpacked
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.learn.relearn import loop_state
from stream.learn.restart_check import check_restart
from stream.records.validity import faults, learnable
from stream.servers.fences import DamagedStoreError, fence_of, sequence_of
from stream.sessions.fold import SessionFold, SessionStates
from stream.sessions.store import _unpacked
from tests.fuzz.mutate import INTEGERS, arrays_changed, changed, column, damaged
from tests.fuzz.target import TAKEN, Target, promised, rejected
from tests.stream.pipeline import SMALL, SPEC, START_MS, base_snapshot, example_rows

_REASONS = ("damaged", "unsound", "none", "layout")


# --------------------------------------------------------------------------------------------------------------- Redis


@cache
def _encoder() -> Encoder:
    return Encoder(SPEC)


@cache
def _folded() -> SessionStates:
    fold, rows = SessionFold(SPEC), example_rows(30, seed=8, user_key=np.full(30, 9, np.uint64))
    keys = fold.keys([rows])
    empty = SessionStates(keys, np.zeros(len(keys.users), USER), np.zeros(len(keys.counters), COUNTER))
    return fold.fold(empty, [rows])


def _run_session(value: bytes) -> str:
    """A value of Redis (u: a user's, c: a counter's) is read by serving and by the fold."""
    kind, stored = value[:1], value[1:]
    user = _unpacked([stored if kind == b"u" else None, None], USER)
    counter = _unpacked([stored if kind == b"c" else None, None], COUNTER)
    promised(np.isfinite(sums_of(counter)).all(), "a sum that is not finite was read")
    encoder = _encoder()
    request = Request(5, START_MS, {"user_id": 9}, {"placement": 1}, [{"ad_id": 3, "category": 2}])
    ids = encoder.ids([request])
    view = SessionView(
        user[:1],
        np.repeat(counter[:1], len(SPEC.request_counters))[None],
        np.repeat(counter[:1], len(SPEC.ad_counters))[None],
    )
    encoded = encoder.encode(ids, view)
    promised(np.isfinite(encoded.rows().dense).all(), "dense inputs are not finite")
    fold, rows = SessionFold(SPEC), example_rows(6, seed=9, user_key=np.full(6, 9, np.uint64))
    keys = fold.keys([rows])
    states = SessionStates(keys, np.repeat(user[:1], len(keys.users)), np.repeat(counter[:1], len(keys.counters)))
    promised(np.isfinite(sums_of(fold.fold(states, [rows]).counters)).all(), "a folded sum is not finite")
    return TAKEN if stored and len(stored) in (USER.itemsize, COUNTER.itemsize) else "layout"


def _session_changed(value: bytes, source: Random) -> bytes:
    for _ in range(source.randint(1, 4)):
        value = value[:1] + column(value[1:], source)
    return value


@cache
def _sessions() -> list[bytes]:
    states = _folded()
    return [b"u" + states.users[0].tobytes(), *(b"c" + states.counters[at].tobytes() for at in (0, -1))]


def _run_click(value: bytes) -> str:
    found = unpacked([_clicks()[0], value, _clicks()[1]], SPEC.id_columns, SPEC.dense_inputs)
    promised(len(found.examples) == len(found.converted_ms) >= 2, "a good click beside it was lost")
    kept = learnable(found.examples, ("click", "conversion"))
    promised(kept[0] and kept[-1], "a good click beside it cannot be learned")
    promised(all(one.detail for one in faults(found.examples)), "a fault without a detail")
    return TAKEN if len(found.examples) == 3 and kept[1] else "layout"


@cache
def _clicks() -> list[bytes]:
    rows = example_rows(2, seed=6, kind=np.array([1, 1], np.uint8))
    first, second = packed(rows)
    return [first, second + packed_times(np.array([START_MS + 5]))[0]]


def _run_fence(value: bytes) -> str:
    promised(0 <= sequence_of(value) <= 2**62, "a sequence number that is none")
    try:
        promised(0 <= fence_of(value) <= 2**62, "an offset of no log was taken")
    except DamagedStoreError as error:
        return rejected("damaged", str(error), _REASONS)
    return TAKEN


def _fence_changed(value: bytes, source: Random) -> bytes:
    if source.randrange(2):
        return str(source.choice(INTEGERS)).encode()
    return damaged(value, source, "٣²½1e5 0x1f".encode())


# ----------------------------------------------------------------------------------------------------------- snapshots


@cache
def _root() -> Path:
    """A folder of this process with one snapshot, of a learner that has begun."""
    root = Path(tempfile.mkdtemp(prefix="millstream-fuzz-"))
    heads = (Head("click"), Head("conversion", given="click"))
    base = base_snapshot(root / "base", watermark_ms=START_MS, config=replace(SMALL, heads=heads))
    loop = LearningLoop(base.model(), LearningConfig(learn_batch_rows=4, learn_interval_s=1.0), 1)
    kinds = np.array([0, 1, 0, 2, 0, 1, 0, 0, 1], np.uint8)
    loop.step(example_rows(9, seed=2, kind=kinds), 0, 0, START_MS + 60_000)
    state = {**loop.model.state(), **loop.state().to_arrays()}
    snapshot = Snapshot(
        version=loop.version, created_from="stream", watermark_ms=START_MS, newest_event_ms=START_MS,
        shape=base.shape, config=base.config, state={name: np.array(one) for name, one in state.items()},
        offsets={0: 1}, line=1,
    )  # fmt: skip
    write_snapshot(str(root / "sound"), snapshot)
    return root


def _sound() -> Path:
    (folder,) = (_root() / "sound").glob("v*")
    return folder


def _run_snapshot(name: str, value: bytes) -> str:
    """The snapshot with another file of that name, whose manifest fits it: as a learner and as serving start on it."""
    folder = _root() / "tried" / _sound().name
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(_sound(), folder)
    (folder / name).write_bytes(value)
    if name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["files"][name] = {"size": len(value), "sha256": hashlib.sha256(value).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    asked = example_rows(4, seed=4).rows()
    try:
        served = load_newest(str(folder.parent), SPEC, scores=asked)
        promised(np.isfinite(served.model.predict_heads(asked)).all(), "serving would answer no number")
    except (SnapshotError, NoSnapshotError) as error:
        rejected("unsound", str(error), _REASONS)
    try:
        snapshot = load_snapshot(str(folder), spec_hash=SPEC.hash)
        check_columns(snapshot, SPEC)
        check_restart(snapshot, spec=SPEC)
    except SnapshotError as error:
        return rejected("unsound", str(error), _REASONS)
    promised(0 <= snapshot.version <= 10**11 and 0 <= snapshot.watermark_ms < 2**32 * 1000, "of no version, no time")
    _goes_on(snapshot)
    return TAKEN


def _goes_on(snapshot: Snapshot) -> None:
    loop = LearningLoop(
        snapshot.model(), LearningConfig(learn_batch_rows=4), 1, state=loop_state(snapshot), version=snapshot.version
    )
    for array in loop.model.state().values():
        promised(array.dtype.kind != "f" or np.isfinite(array).all(), "weights are not finite")
    at = max(loop.next_offset(0), 1)
    loop.step(example_rows(9, seed=2, ts_ms=np.full(9, START_MS + 70_000)), 0, at, START_MS + 600_000)
    loop.state()


def _manifest_changed(value: bytes, source: Random) -> bytes:
    raw = json.loads(value)
    for _ in range(source.randint(1, 2)):
        raw = changed(raw, source)
    return json.dumps(raw, default=repr).encode("utf-8", "surrogatepass")


def _weights_changed(value: bytes, source: Random) -> bytes:
    if source.randrange(6) == 0:
        return column(value, source)
    made = load(value)
    for _ in range(source.randint(1, 2)):
        made = arrays_changed(made, source) if made else made
    return save({name: np.ascontiguousarray(one) for name, one in made.items()})


TARGETS = [
    Target("session_state", _run_session, _sessions, _session_changed),
    Target("stored_click", _run_click, _clicks, column),
    Target("fence", _run_fence, lambda: [b"0", b"17", b"4611686018427387904"], _fence_changed),
    Target("snapshot_manifest", partial(_run_snapshot, "manifest.json"),
           lambda: [(_sound() / "manifest.json").read_bytes()], _manifest_changed),
    Target("snapshot_weights", partial(_run_snapshot, "model.safetensors"),
           lambda: [(_sound() / "model.safetensors").read_bytes()], _weights_changed),
]  # fmt: skip
