"""The calibration core of a partition: what is counted, what is published, restarts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.bins import BinState
from calibration.stream import CalibratorConfig
from learners.kinds import CONVERSION, CORRECTION, SETTLED
from stream.calibrating import PartitionCalibrator
from stream.records import CalibrationRecord
from tests.stream.rig import START_MS, example_rows

FORGETS = CalibratorConfig(half_life_rows=64)
KEEPS = CalibratorConfig(half_life_rows=float("inf"))


def published(calibrator: PartitionCalibrator) -> CalibrationRecord:
    """The state now."""
    record = calibrator.take_publication(at_once=True)
    assert record is not None
    return record


def test_counts_the_served_logits_of_settled_examples() -> None:
    """The state is that of the bins fed with the same logits and labels."""
    rows = example_rows(50, seed=1)
    expected = BinState(KEEPS.grid)
    expected.add(rows.logit, rows.label.astype(np.bool_))
    calibrator = PartitionCalibrator(0, KEEPS, 1.0)
    calibrator.step(rows, 0, START_MS)
    assert BinState.from_bytes(published(calibrator).state) == expected


def test_a_correction_replaces_the_negative_it_corrects() -> None:
    """Settled as a negative and corrected later counts as settled as a positive at once."""
    label = np.array([0, 1, 0], np.uint8)
    settled = example_rows(3, seed=1, label=label)
    corrected = settled.take(slice(2, 3))
    correction = example_rows(1, seed=2, logit=corrected.logit, label=np.ones(1, np.uint8), kind=np.array([CORRECTION]))
    late = PartitionCalibrator(0, KEEPS, 1.0)
    late.step(settled, 0, START_MS)
    late.step(correction, 1, START_MS)
    known = PartitionCalibrator(0, KEEPS, 1.0)
    known.step(example_rows(3, seed=1, label=np.array([0, 1, 1], np.uint8)), 0, START_MS)
    assert BinState.from_bytes(published(late).state) == BinState.from_bytes(published(known).state)


def test_conversions_and_bad_logits_are_not_counted() -> None:
    """A conversion says nothing about clicks; a logit that is not finite has no bin."""
    kind = np.array([SETTLED, CONVERSION, SETTLED], np.uint8)
    rows = example_rows(3, seed=1, kind=kind, logit=np.array([0.5, 0.5, np.nan], np.float32))
    calibrator = PartitionCalibrator(0, KEEPS, 1.0)
    calibrator.step(rows, 0, START_MS)
    assert published(calibrator).rows == 1
    assert calibrator.rejected_rows == 1


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 19))
def test_restarted_from_its_record_it_goes_on_bit_equal(cut: int) -> None:
    """The record of the topic is enough: the sums, also under decay, are those of a calibrator never stopped."""
    records = [example_rows(10, seed=at) for at in range(20)]
    whole, first = PartitionCalibrator(3, FORGETS, 1.0), PartitionCalibrator(3, FORGETS, 1.0)
    for offset, rows in enumerate(records):
        whole.step(rows, offset, START_MS + offset)
        if offset < cut:
            first.step(rows, offset, START_MS + offset)
    second = PartitionCalibrator(3, FORGETS, 1.0, published(first))
    for offset, rows in enumerate(records):  # delivered from the start: what it holds is skipped
        second.step(rows, offset, START_MS + offset)
    one, other = published(whole), published(second)
    assert (other.state, other.rows, other.next_offset) == (one.state, one.rows, one.next_offset)
    assert other.version == one.version + 1


def test_publishes_by_event_time_and_only_then() -> None:
    """One record an interval of the watermark; without new rows the version stays."""
    calibrator = PartitionCalibrator(0, KEEPS, 10.0)
    calibrator.step(example_rows(5, seed=1), 0, START_MS)
    first = calibrator.take_publication()
    assert first is not None
    assert (first.version, first.rows, first.next_offset, first.watermark_ms) == (1, 5, 1, START_MS)
    calibrator.step(example_rows(0, seed=1), 1, START_MS + 9_999)
    assert calibrator.take_publication() is None
    calibrator.step(example_rows(0, seed=1), 2, START_MS + 10_000)
    second = calibrator.take_publication()
    assert second is not None
    assert (second.version, second.next_offset) == (1, 3)


def test_an_interval_of_nothing_is_refused() -> None:
    """The message names the value and the variable."""
    with pytest.raises(ValueError, match=r"publish_interval_s=0 .*MILLSTREAM_PUBLISH_INTERVAL_S"):
        PartitionCalibrator(0, KEEPS, 0)
