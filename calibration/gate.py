"""What of a map may be applied: what has beaten no map on displays that came after it was fitted."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.bins import WEIGHT_SCALE
from calibration.cohorts import CohortTable
from calibration.slices import SlicePlan

OPENS_AT_NATS: Final = 2.0
MOST_NATS: Final = 2.5
"""A map that was good for long and has become wrong may cost so much, and what comes until it is seen, before it is
off: 1e-4 a display of 30,000, ten minutes of the slowest traffic that bounds are given for."""
LEAST_NATS: Final = -3.0
_GAIN, _CLICKS = 0, 1
_OFFSETS, _CURVE = 0, 1  # bins of the table


class Proved(NamedTuple):
    """What is applied."""

    curve: bool
    firsts: NDArray[np.int64]  # nodes of depth 1 whose offsets, and those of the nodes below, are


def gate(gains: CohortTable, plan: SlicePlan, half_life_clicks: float) -> Proved:
    """Walk through the gains in the order of displays, for the curve, for each value of the first slice, and for all.

    A value is open when its own sum and that of all values are: many small faults at once are one fault.

    The sum of what was gained fades with clicks and stays within bounds, as in a CUSUM chart (Page, Continuous
    inspection schemes, 1954): it opens at 2 nats and closes at 0, whatever was gained before. A pure function of the
    sums, so that every serving process that holds the same states applies the same map.
    """
    starts, bins, sums = gains.starts(), gains.bins(), gains.sums()
    if not len(starts):
        return Proved(False, np.zeros(0, np.int64))
    gain_nats = sums[:, _GAIN] / WEIGHT_SCALE
    times, of_time = np.unique(starts, return_inverse=True)
    clicks = np.bincount(of_time, sums[:, _CLICKS].astype(np.float64), len(times))
    firsts = plan.nodes(gains.paths(), 1) if plan.depth else gains.paths()
    names, of_name = np.unique(firsts, return_inverse=True)
    gained = np.zeros((len(times), len(names) + 2))
    offsets = bins == _OFFSETS
    np.add.at(gained, (of_time[offsets], of_name[offsets]), gain_nats[offsets])
    curve = bins == _CURVE
    np.add.at(gained, (of_time[curve], np.full(int(curve.sum()), len(names))), gain_nats[curve])
    gained[:, -1] = gained[:, :-2].sum(axis=1)
    nats, opened = np.zeros(len(names) + 2), np.zeros(len(names) + 2, np.bool_)
    for kept, gain in zip(0.5 ** (clicks / half_life_clicks), gained, strict=True):
        nats = np.clip(nats * kept + gain, LEAST_NATS, MOST_NATS)
        opened = np.where(opened, nats > 0.0, nats >= OPENS_AT_NATS)
    values = names[opened[:-2] & opened[-1]] if plan.depth else np.zeros(0, np.int64)
    return Proved(bool(opened[-2]), values)
