"""Calibration of a stream of click probabilities.

`bins` the sums that hold the evidence, `isotonic` the fit, `curve` the map it gives, `stream` the calibrator
of a stream, `reliability` how good it is, `sampling` the correction for sampled negatives.
"""

from __future__ import annotations

from calibration.bins import BinState, LogitGrid
from calibration.curve import CalibrationMap
from calibration.isotonic import fit_map, pava
from calibration.reliability import expected_calibration_error, observed_over_expected, reliability_table
from calibration.sampling import to_full_stream, to_sampled_stream
from calibration.stream import CalibratorConfig, StreamingCalibrator, merged_map

__all__ = [
    "BinState",
    "CalibrationMap",
    "CalibratorConfig",
    "LogitGrid",
    "StreamingCalibrator",
    "expected_calibration_error",
    "fit_map",
    "merged_map",
    "observed_over_expected",
    "pava",
    "reliability_table",
    "to_full_stream",
    "to_sampled_stream",
]
