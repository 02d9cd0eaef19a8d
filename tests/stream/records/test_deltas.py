"""Splitting and joining deltas."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.deepfm.delta import Delta, DeltaError
from stream.records.deltas import DeltaAssembler, DeltaChecksumError, DeltaGapError, to_parts
from stream.records.wire import DeltaPart

SPEC = "0123456789abcdef"


def delta(version: int, *, parent: int | None = None, rows: int = 20, clicks: int = 3) -> Delta:
    """A delta with random weights."""
    generator = np.random.default_rng(version)
    return Delta(
        spec_hash=SPEC,
        version=version,
        parent=version - 1 if parent is None else parent,
        watermark_ms=1000 * version,
        newest_event_ms=1000 * version - 7,
        clicks_produced_ms=np.arange(clicks, dtype=np.int64) + 1_700_000_000_000,
        keys=np.arange(rows, dtype=np.uint64) * 3 + 1,
        values=generator.standard_normal((rows, 5)).astype(np.float32),
        removed=np.arange(rows // 3, dtype=np.uint64) * 3 + 2,
        dense={"mlp.0.bias": np.arange(4, dtype=np.float32), "linear.weight": np.ones((2, 3), np.float32)},
    )


def assembler(version: int = 0) -> DeltaAssembler:
    """An assembler that holds ``version``."""
    return DeltaAssembler(version=version, spec_hash=SPEC)


def assert_equal(a: Delta, b: Delta) -> None:
    """Every field agrees, arrays by value."""
    for field in dataclasses.fields(Delta):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "dense":
            assert left.keys() == right.keys()
            assert all(np.array_equal(left[name], right[name]) for name in left)
        else:
            assert np.array_equal(left, right), field.name


@given(st.integers(0, 60), st.integers(0, 10), st.integers(800, 6000))
@settings(deadline=None, max_examples=60)
def test_a_delta_survives_the_topic(rows: int, clicks: int, max_part_bytes: int) -> None:
    """Split, encoded, decoded and joined it is the same delta, and no part exceeds the limit."""
    sent = delta(1, rows=rows, clicks=clicks)
    wire = [msgspec.msgpack.encode(part) for part in to_parts(sent, max_part_bytes)]
    joiner = assembler()
    got = [joiner.add(msgspec.msgpack.decode(raw, type=DeltaPart)) for raw in wire]
    assert all(len(raw) <= max_part_bytes for raw in wire)
    assert got[:-1] == [None] * (len(wire) - 1)
    assert got[-1] is not None
    assert_equal(got[-1], sent)
    assert joiner.version == 1


def test_a_heartbeat_moves_time_and_nothing_else() -> None:
    """It is one part without payload and comes back as a heartbeat of the current version."""
    beat = Delta.heartbeat(spec_hash=SPEC, version=4, watermark_ms=99, newest_event_ms=90)
    parts = to_parts(beat, 10_000)
    assert [len(part.payload) for part in parts] == [0]
    got = assembler(version=4).add(parts[0])
    assert got is not None
    assert got.is_heartbeat
    assert (got.version, got.watermark_ms, got.newest_event_ms) == (4, 99, 90)


def test_versions_already_held_are_skipped() -> None:
    """Reading may start before the snapshot's version."""
    joiner = assembler(version=2)
    old = [part for version in (1, 2) for part in to_parts(delta(version), 1000)]
    assert [joiner.add(part) for part in old] == [None] * len(old)
    assert joiner.add(to_parts(delta(3), 100_000)[0]) is not None
    old_beat = Delta.heartbeat(spec_hash=SPEC, version=1, watermark_ms=1, newest_event_ms=1)
    assert joiner.add(to_parts(old_beat, 1000)[0]) is None


def test_a_missing_version_is_a_gap() -> None:
    """A delta, or a heartbeat, of a later version than the next is refused with both numbers."""
    with pytest.raises(DeltaGapError, match="delta 3 builds on version 2, the current version is 1"):
        assembler(version=1).add(to_parts(delta(3), 100_000)[0])
    beat = Delta.heartbeat(spec_hash=SPEC, version=5, watermark_ms=1, newest_event_ms=1)
    with pytest.raises(DeltaGapError, match="version 5 came while 1"):
        assembler(version=1).add(to_parts(beat, 1000)[0])


def test_a_missing_part_is_a_gap() -> None:
    """Parts are never joined around a hole, nor is a delta begun in its middle."""
    first, _, third, *_ = to_parts(delta(1), 800)
    joiner = assembler()
    joiner.add(first)
    with pytest.raises(DeltaGapError, match="part 2"):
        joiner.add(third)
    with pytest.raises(DeltaGapError, match="part 2"):
        joiner.add(third)
    assert joiner.version == 0


def test_a_repeated_part_is_skipped() -> None:
    """A producer's retry does not disturb the delta."""
    parts = to_parts(delta(1), 800)
    joiner = assembler()
    got = [joiner.add(part) for part in [parts[0], *parts]]
    assert [answer is not None for answer in got] == [False] * len(parts) + [True]


def test_a_learner_that_restarted_begins_its_delta_again() -> None:
    """Part 0 of other content drops what was there."""
    joiner = assembler()
    joiner.add(to_parts(delta(1, rows=40), 800)[0])
    sent = delta(1, rows=10)
    got = [joiner.add(part) for part in to_parts(sent, 800)][-1]
    assert got is not None
    assert_equal(got, sent)


def test_altered_bytes_are_refused() -> None:
    """The checksum covers every payload byte, and the current version stays."""
    *parts, last = to_parts(delta(1), 800)
    altered = bytes([last.payload[0] ^ 1]) + last.payload[1:]
    joiner = assembler()
    for part in parts:
        joiner.add(part)
    with pytest.raises(DeltaChecksumError, match="checksum"):
        joiner.add(msgspec.structs.replace(last, payload=altered))
    assert joiner.version == 0


def test_another_feature_spec_is_refused() -> None:
    """Both hashes are named."""
    with pytest.raises(DeltaError, match=f"ffff.*{SPEC}"):
        assembler().add(to_parts(dataclasses.replace(delta(1), spec_hash="ffff"), 10_000)[0])


def test_a_limit_without_room_for_weights_is_refused() -> None:
    """The message names the limit and what it must exceed."""
    with pytest.raises(ValueError, match="max_part_bytes=530 must exceed 536"):
        to_parts(delta(1), 530)
