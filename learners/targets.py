"""What examples teach a model's heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples import Examples
from learners.kinds import CONVERSION, CORRECTION

CLICK, CONVERTED = "click", "conversion"
"""Names of the heads that examples have labels for."""

Index = NDArray[np.intp]


class Targets(NamedTuple):
    """Labels, bool, and weights, float32, of B rows: both (B,) for a model of one head, else (B, H)."""

    labels: NDArray[np.bool_]
    weight: NDArray[np.float32]

    def at(self, places: Index) -> Targets:
        """Those of some of the rows."""
        return Targets(self.labels[places], self.weight[places])


def outcomes(examples: Examples, settled: Index, heads: Sequence[str], *, before_ms: int | None = None) -> Targets:
    """Of the settled examples at ``settled``: all that is known of their impressions, or was before ``before_ms``."""
    of_head = [_outcome(examples, settled, head, before_ms) for head in heads]
    weight = examples.columns["weight"][settled]
    return _of_heads([(labels, weight) for labels in of_head])


def arrivals(
    kind: NDArray[np.uint8],
    label: NDArray[np.uint8],
    heads: Sequence[str],
    *,
    weight: NDArray[np.float32] | None = None,
) -> Targets:
    """Of B rows as they arrive: what became known later is one more row, for its own head alone.

    A correction is a click, a conversion a converted click; the negative that the settled row taught is not undone.
    ``kind``, ``label`` and ``weight`` (default 1) are (B,).
    """
    weight = np.ones(len(kind), np.float32) if weight is None else weight
    found = []
    for head in _checked(heads):
        if head == CLICK:
            found.append((label == 1, weight * (kind != CONVERSION)))
        else:
            found.append((kind == CONVERSION, weight * (kind != CORRECTION)))
    return _of_heads(found)


def _outcome(examples: Examples, settled: Index, head: str, before_ms: int | None) -> NDArray[np.bool_]:
    _checked((head,))
    known = examples.clicked if head == CLICK else examples.converted
    return known(settled, before_ms=before_ms)


def _of_heads(of_head: list[tuple[NDArray[np.bool_], NDArray[np.float32]]]) -> Targets:
    labels, weight = (np.stack(columns, axis=1) for columns in zip(*of_head, strict=True))
    return Targets(labels, weight) if len(of_head) > 1 else Targets(labels[:, 0], weight[:, 0])


def _checked(heads: Sequence[str]) -> Sequence[str]:
    for head in heads:
        if head not in (CLICK, CONVERTED):
            raise ValueError(
                f"head {head!r} must be {CLICK!r} or {CONVERTED!r}: examples have no other labels, so it would learn "
                "nothing. Name the heads so."
            )
    return heads
