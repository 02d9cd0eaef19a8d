"""The map of several partitions together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.cohorts import CohortTable
from calibration.delay_law import merged_law
from calibration.evidence import Weighed
from calibration.fit import gated, levelled
from calibration.gate import gate
from calibration.head import RIPE_SHARE, HeadCalibration
from calibration.slice_map import SliceMap


def map_of(parts: Sequence[HeadCalibration], version: int = 0) -> SliceMap:
    """The map to apply: what of the candidate of all partitions has beaten no map on displays that came after it."""
    if not parts:
        return SliceMap(version=version)
    first = parts[0]
    gains = CohortTable(2)
    for one in parts:
        gains.merge(one.gains)
    proved = gate(gains, first.plan, first.config.gate_half_life_clicks)
    if not proved.curve and not len(proved.firsts):
        return SliceMap(first.plan, version=version)
    weighed = weighed_of(parts)
    candidate = first.fitted(weighed, version)
    opened = np.isin(first.plan.firsts(candidate.nodes), proved.firsts)
    return levelled(gated(candidate, opened, curve_open=proved.curve), weighed)


def weighed_of(parts: Sequence[HeadCalibration]) -> Weighed:
    """The evidence of one or more partitions together, which `HeadCalibration.fitted` makes a map of."""
    if len(parts) == 1:
        return parts[0].weighed()
    evidence = parts[0].evidence.merged_with([one.evidence for one in parts[1:]])
    ripe_ms = float(merged_law([one.law for one in parts]).quantile(RIPE_SHARE))
    return evidence.weighed(parts[0].config.half_life_clicks, ripe_ms)
