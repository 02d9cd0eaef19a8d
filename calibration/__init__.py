"""Calibration of a stream of click probabilities.

`head` the state of one head: `evidence` what a map is fitted to, `delay_law` what is still to come, `instruments` how
good the served p is, `gate` what may be applied; `merged` the map of all partitions, `slice_map` how it is applied.
`bins`, `isotonic`, `curve` the fit of labelled rows, `reliability` how good it is, `sampling` the correction for
sampled negatives.
"""

from __future__ import annotations

from calibration.bins import BinState, LogitGrid
from calibration.config import CalibratorConfig
from calibration.curve import CalibrationMap
from calibration.delay_law import DelayLaw
from calibration.head import HeadCalibration
from calibration.isotonic import fit_map, pava
from calibration.merged import map_of
from calibration.reliability import expected_calibration_error, observed_over_expected, reliability_table
from calibration.sampling import to_full_stream, to_sampled_stream
from calibration.slice_map import SliceMap
from calibration.slices import SlicePlan

__all__ = [
    "BinState",
    "CalibrationMap",
    "CalibratorConfig",
    "DelayLaw",
    "HeadCalibration",
    "LogitGrid",
    "SliceMap",
    "SlicePlan",
    "expected_calibration_error",
    "fit_map",
    "map_of",
    "observed_over_expected",
    "pava",
    "reliability_table",
    "to_full_stream",
    "to_sampled_stream",
]
