"""Which example rows a model learns, and why the others are rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.terms import CONVERSION_HEAD
from learners.training.sampling import uniform
from stream.records.examples import ExampleRows

_SAMPLING_SEED = 11  # another draw than those of base training


@dataclass(frozen=True, slots=True)
class Fault:
    """Rows that no model can learn; ``reason`` is the dead letter's."""

    reason: str
    detail: str
    rows: NDArray[np.intp]


def faults(rows: ExampleRows) -> list[Fault]:
    """The rows that cannot be learned by reason; a row with several faults counts for the first."""
    found: list[Fault] = []
    left = np.ones(len(rows), np.bool_)
    for reason, bad, what in (
        ("not_finite", ~np.isfinite(rows.dense).all(axis=1), "dense inputs that are not finite"),
        ("schema", ~np.isin(rows.kind, (EXPOSURE, CLICK, CONVERSION)), "an unknown kind of example"),
    ):
        where = np.flatnonzero(bad & left)
        left[where] = False
        if len(where):
            detail = f"{len(where)} of {len(rows)} rows have {what}; the first is row {where[0]}"
            if reason == "schema":
                detail += f" with kind {rows.kind[where[0]]}"
            found.append(Fault(reason, detail, where))
    return found


def learnable(rows: ExampleRows, heads: Sequence[str]) -> NDArray[np.bool_]:
    """(B,) rows without a fault: exposures, clicks, and conversions when a head learns them."""
    kept = np.ones(len(rows), np.bool_)
    for fault in faults(rows):
        kept[fault.rows] = False
    if CONVERSION_HEAD not in heads:
        kept &= rows.kind != CONVERSION
    return kept


def sampled(rows: ExampleRows, exposure_rate: float) -> NDArray[np.bool_]:
    """(B,) all clicks and conversions, and exposures by a hash of their impression: the same ones wherever they stand.

    An exposure that is kept pays its term 1 / ``exposure_rate`` times, a click its own once: the expected gradient is
    that of all rows, so that no log-odds are to be corrected.
    """
    if exposure_rate >= 1.0:
        return np.ones(len(rows), np.bool_)
    kept: NDArray[np.bool_] = (rows.kind != EXPOSURE) | (uniform(rows.impression_id, _SAMPLING_SEED) < exposure_rate)
    return kept


def term_weight(kind: NDArray[np.uint8], exposure_rate: float) -> NDArray[np.float32]:
    """(B,) what the terms of sampled rows are multiplied by."""
    return np.where(kind == EXPOSURE, np.float32(1.0 / exposure_rate), np.float32(1.0))
