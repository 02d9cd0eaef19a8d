"""Which example rows a model learns, and why the others are put aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.targets import CONVERTED
from stream.examples import ExampleRows


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
        ("label", rows.label > 1, "a label that is neither 0 nor 1"),
        ("schema", ~np.isin(rows.kind, (SETTLED, CORRECTION, CONVERSION)), "an unknown kind of example"),
    ):
        where = np.flatnonzero(bad & left)
        left[where] = False
        if len(where):
            detail = f"{len(where)} of {len(rows)} rows have {what}; the first is row {where[0]}"
            if reason != "not_finite":
                column = "label" if reason == "label" else "kind"
                detail += f" with {column} {getattr(rows, column)[where[0]]}"
            found.append(Fault(reason, detail, where))
    return found


def learnable(rows: ExampleRows, heads: Sequence[str]) -> NDArray[np.bool_]:
    """(B,) rows without a fault: settled ones, corrections, and conversions when a head learns them."""
    kept = np.ones(len(rows), np.bool_)
    for fault in faults(rows):
        kept[fault.rows] = False
    if CONVERTED not in heads:
        kept &= rows.kind != CONVERSION
    return kept
