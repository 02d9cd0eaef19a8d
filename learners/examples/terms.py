"""What rows teach a model, as the two terms of the log loss.

−y·log σ(z) − (1−y)·log(1−σ(z)) = softplus(z) − y·z: a display pays softplus(z), gradient σ(z), when it is displayed,
and its click pays −z, gradient −1, when it comes. The terms of an impression add up to its log loss whenever they are
paid, so nothing waits for a label and nothing is weighed by how long one waited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE

CLICK_HEAD, CONVERSION_HEAD = "click", "conversion"
"""Names of the heads that examples teach: P(click | display), P(conversion | click)."""

# head → the kind that pays softplus(z), the kind that pays −z
_KINDS = {CLICK_HEAD: (EXPOSURE, CLICK), CONVERSION_HEAD: (CLICK, CONVERSION)}


class Terms(NamedTuple):
    """Weights of the two terms of B rows: row i pays ``exposure[i]``·softplus(z) − ``event[i]``·z.

    Both float32, (B,) for a model of one head, else (B, H); 0 where a row teaches a head nothing.
    """

    exposure: NDArray[np.float32]
    event: NDArray[np.float32]

    @classmethod
    def of_labels(cls, labels: NDArray[np.bool_] | NDArray[np.float32], weight: NDArray[np.float32]) -> Self:
        """Of rows whose label is known: the weighted log loss. Both (B,) or (B, H)."""
        weight = np.asarray(weight, np.float32)
        return cls(weight, weight * labels)

    @classmethod
    def of_kinds(cls, kind: NDArray[np.uint8], heads: Sequence[str], weight: NDArray[np.float32] | None = None) -> Self:
        """Of B rows of the stream, by their kind, (B,), times ``weight``, (B,), default 1.

        Raises ValueError for a head that examples say nothing about.
        """
        weight = np.ones(len(kind), np.float32) if weight is None else np.asarray(weight, np.float32)
        exposure, event = [], []
        for head in heads:
            if head not in _KINDS:
                raise ValueError(
                    f"head {head!r} must be one of {tuple(_KINDS)}: examples say nothing about another, so it would "
                    "learn nothing. Name the heads so."
                )
            exposed, happened = _KINDS[head]
            exposure.append(weight * (kind == exposed))
            event.append(weight * (kind == happened))
        if len(heads) == 1:
            return cls(exposure[0], event[0])
        return cls(np.stack(exposure, axis=1), np.stack(event, axis=1))

    def take(self, index: NDArray[np.intp] | slice) -> Self:
        """Those of some of the rows."""
        return type(self)(self.exposure[index], self.event[index])
