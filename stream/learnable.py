"""Which example rows a model learns, with which labels, and why the others are put aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.targets import CLICK, CONVERTED, Targets
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


def targets(rows: ExampleRows, heads: Sequence[str]) -> Targets:
    """Labels and weights of learnable rows.

    What became known later is one more row that speaks to its own head alone: a correction is a click, a conversion is
    a converted click. The negative that was learned when the impression was settled is not undone.
    """
    of_head = [_of_head(rows, head) for head in heads]
    labels, weight = (np.stack(columns, axis=1) for columns in zip(*of_head, strict=True))
    return Targets(labels, weight) if len(heads) > 1 else Targets(labels[:, 0], weight[:, 0])


def _of_head(rows: ExampleRows, head: str) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    if head == CLICK:
        return rows.label == 1, (rows.kind != CONVERSION).astype(np.float32)
    if head == CONVERTED:
        return rows.kind == CONVERSION, (rows.kind != CORRECTION).astype(np.float32)
    raise ValueError(
        f"head {head!r} must be {CLICK!r} or {CONVERTED!r}: examples have no other labels, so it would learn nothing. "
        "Train the online model with these heads."
    )
