"""Deltas as bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from learners.deepfm.delta import Delta, DeltaError, weights_of
from tests.learners.batches import learned


def test_a_payload_gives_back_the_very_weights() -> None:
    """Keys, values, removed keys and every dense parameter return bit-equal."""
    delta = learned(3).changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0)
    delta = dataclasses.replace(delta, removed=np.array([5, 1 << 63], np.uint64))
    found = weights_of(delta.payload())
    assert np.array_equal(found.keys, delta.keys)
    assert np.array_equal(found.values, delta.values)
    assert np.array_equal(found.removed, delta.removed)
    assert found.dense.keys() == delta.dense.keys()
    assert all(np.array_equal(found.dense[name], delta.dense[name]) for name in found.dense)


def test_equal_models_give_equal_bytes() -> None:
    """The payload is a function of the weights alone."""
    first, second = (learned(3).changes(version=1, parent=0, watermark_ms=0, newest_event_ms=0) for _ in range(2))
    assert first.payload() == second.payload()


def test_a_heartbeat_has_no_payload() -> None:
    """It says only how far the learner has come."""
    beat = Delta.heartbeat(spec_hash="a", version=3, watermark_ms=9, newest_event_ms=8)
    assert beat.is_heartbeat
    assert beat.payload() == b""


@pytest.mark.parametrize("payload", [b"", b"not safetensors", learned(1).dense.flat.numpy().tobytes()])
def test_an_unreadable_payload_is_a_delta_error(payload: bytes) -> None:
    """The message says how many bytes it was and what to do."""
    with pytest.raises(DeltaError, match=rf"{len(payload)} bytes is unreadable.*Reload a snapshot"):
        weights_of(payload)
