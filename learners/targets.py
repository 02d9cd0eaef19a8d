"""What labelled impressions teach a model's heads: base training's side of `learners.terms`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples import Examples
from learners.terms import CLICK_HEAD, CONVERSION_HEAD

Index = NDArray[np.intp]


class Targets(NamedTuple):
    """Labels, bool, and weights, float32, of B rows: both (B,) for a model of one head, else (B, H)."""

    labels: NDArray[np.bool_]
    weight: NDArray[np.float32]

    def at(self, places: Index) -> Targets:
        """Those of some of the rows."""
        return Targets(self.labels[places], self.weight[places])


def outcomes(examples: Examples, exposures: Index, heads: Sequence[str], *, before_ms: int | None = None) -> Targets:
    """Of the exposures at ``exposures``: all that is known of their impressions, or was before ``before_ms``.

    Each head's weight is the exposure's; `DeepFM.terms_of_labels` leaves a conversion head the clicked rows.
    """
    labels = np.stack([_outcome(examples, exposures, head, before_ms) for head in heads], axis=1)
    weight: NDArray[np.float32] = np.repeat(examples.columns["weight"][exposures][:, None], len(heads), axis=1)
    return Targets(labels, weight) if len(heads) > 1 else Targets(labels[:, 0], weight[:, 0])


def _outcome(examples: Examples, exposures: Index, head: str, before_ms: int | None) -> NDArray[np.bool_]:
    if head not in (CLICK_HEAD, CONVERSION_HEAD):
        raise ValueError(
            f"head {head!r} must be {CLICK_HEAD!r} or {CONVERSION_HEAD!r}: examples have no other labels, so it would "
            "learn nothing. Name the heads so."
        )
    known = examples.clicked if head == CLICK_HEAD else examples.converted
    return known(exposures, before_ms=before_ms)
