"""Notices that a model has gone astray although its gradients are still finite: its loss says so."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

_LEAST_RATE = 0.001  # of clicks in the constant it is compared with, so that a collapse to 0 or 1 is not its own excuse


class BatchLoss(NamedTuple):
    """Sums over the settled rows of one batch, scored before they were learned."""

    rows: int
    clicks: int
    expected: float  # sum of probabilities
    loss: float  # sum of log losses, in nats


class LossWatch:
    """Compares the log loss of the last batches with that of a constant.

    The constant is the model's own mean probability over those batches, kept within 0.1 % and 99.9 %. By Gibbs'
    inequality its loss is at least the entropy of their click rate, so a stretch that is all clicks (as the first
    seconds of a live stream are) or a fresh model that says one half everywhere is no alarm; a model that is surely
    wrong is: random logits of ± 10 lose seven times as much as their mean.

    Parameters
    ----------
    ratio : how many times the constant's loss is too much.
    batches : so many must have been seen; fewer settle nothing.
    held : of a snapshot, to go on after it.
    """

    def __init__(self, *, ratio: float, batches: int, held: Sequence[BatchLoss] = ()) -> None:
        self.ratio = ratio
        self._held: deque[BatchLoss] = deque(held, maxlen=batches)

    def update(self, batch: BatchLoss) -> str | None:
        """Add a batch; what is wrong when the loss is beyond its bound, else None."""
        if batch.rows:
            self._held.append(batch)
        if len(self._held) < (self._held.maxlen or 0):
            return None
        rows, clicks, expected, loss = (sum(column) for column in zip(*self._held, strict=True))
        constant = _constant_loss(clicks / rows, expected / rows)
        if loss / rows <= self.ratio * constant:  # NaN, too, is beyond it
            return None
        return (
            f"a log loss of {loss / rows:.4g} over the last {len(self._held)} batches ({rows} rows, {clicks} clicks, "
            f"mean probability {expected / rows:.4g}) is more than {self.ratio:g} times the {constant:.4g} of a "
            "constant probability"
        )

    def held(self) -> list[BatchLoss]:
        """What a restart needs."""
        return list(self._held)


def _constant_loss(rate: float, probability: float) -> float:
    p = min(max(probability, _LEAST_RATE), 1.0 - _LEAST_RATE) if math.isfinite(probability) else 0.5
    return -(rate * math.log(p) + (1.0 - rate) * math.log1p(-p))
