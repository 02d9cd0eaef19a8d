"""Notices that a model diverges although its gradients are still finite: its loss says so."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.logistic import sigmoid
from learners.examples.terms import Terms

_LEAST_CONSTANT_RATE = 0.001  # what a stretch without clicks may cost a model that says 0.1 %
_RATE_MEMORY = 50  # times the batches of the loss: a burst of clicks is no rate
_MOST_BELIEVED_RATE = 0.15  # of a model that starts, before clicks can have come
_FALLING_SHARE = 0.9  # a later half that costs less than this of the earlier one: the model recovers by itself


class BatchLoss(NamedTuple):
    """Sums over one batch, scored before it was learned; each exposure counts as many times as it stands for."""

    exposures: float
    clicks: float
    expected: float  # sum of the exposures' probabilities
    loss: float  # Σ softplus(z) over exposures − Σ z over clicks, in nats

    @classmethod
    def of(cls, logits: NDArray[np.float32], terms: Terms) -> Self:
        """Of B rows; the terms are those of the click head, (B,)."""
        exposure, z = terms.exposure.astype(np.float64), logits.astype(np.float64)
        paid = float((exposure * np.logaddexp(0.0, z)).sum() - (terms.event * z)[terms.event > 0].sum())
        return cls(
            exposures=float(exposure.sum()),
            clicks=float(terms.event.sum(dtype=np.float64)),
            expected=float((exposure * sigmoid(logits)).sum()),
            loss=paid,
        )

    @property
    def log_loss(self) -> float:
        """Nats an exposure; NaN without any."""
        return self.loss / self.exposures if self.exposures else math.nan


class WatchState(msgspec.Struct, frozen=True):
    """What a restart needs."""

    batches: list[BatchLoss] = []
    exposures: float = 0.0  # decayed sums, for the click rate
    clicks: float = 0.0


class LossWatch:
    """Compares the log loss of the last batches with that of a constant at the true click rate.

    Clicks come later than the displays they belong to, so that a stretch may hold more clicks, or fewer, than its
    displays will have. Therefore the rate is clicks over exposures of fifty times as many batches, kept within 0.1 %
    and 99.9 %, and the constant pays for the very same displays and clicks as the model: a flood of clicks that were
    late, or a stretch of clicks alone, costs both alike. A constant that would pay nothing or less (more clicks than
    displays where most are clicked) says nothing. At the start, before clicks can have come, the model is believed up
    to 15 %. A loss that falls by a tenth from one half of the batches to the other is that of a model that finds its
    way, as after a start with a poor base, and no alarm.

    Parameters
    ----------
    ratio : how many times the constant's loss is too much; a model that works stays below 1.
    batches : so many must have been seen; fewer say nothing.
    state : of a snapshot, to go on after it.
    """

    def __init__(self, *, ratio: float, batches: int, state: WatchState | None = None) -> None:
        state = state or WatchState()
        self.ratio = ratio
        self._batches: deque[BatchLoss] = deque(state.batches, maxlen=batches)
        self._exposures, self._clicks = state.exposures, state.clicks
        self._kept = 1.0 - 1.0 / (_RATE_MEMORY * batches)

    def update(self, batch: BatchLoss) -> str | None:
        """Add a batch; what is wrong when the loss is beyond its bound, else None."""
        if not (batch.exposures or batch.clicks):
            return None
        was_full = len(self._batches) == self._batches.maxlen
        self._batches.append(batch)
        self._exposures = self._exposures * self._kept + batch.exposures
        self._clicks = self._clicks * self._kept + batch.clicks
        if len(self._batches) < (self._batches.maxlen or 0):
            return None
        total = _sum(self._batches)
        if not was_full:
            self._clicks = max(self._clicks, min(total.expected, _MOST_BELIEVED_RATE * total.exposures))
        rate = self._clicks / self._exposures if self._exposures else 1.0
        constant = _constant_loss(min(max(rate, _LEAST_CONSTANT_RATE), 1.0 - _LEAST_CONSTANT_RATE), total)
        if math.isfinite(total.loss) and (constant <= 0.0 or total.loss <= self.ratio * constant or self._falls()):
            return None
        return (
            f"a log loss of {total.loss:.4g} over the last {len(self._batches)} batches ({total.exposures:g} "
            f"exposures, {total.clicks:g} clicks, {total.expected:.4g} expected) is more than {self.ratio:g} times the "
            f"{constant:.4g} of a constant at the click rate of {rate:.4g}"
        )

    def state(self) -> WatchState:
        """What a restart needs."""
        return WatchState(list(self._batches), self._exposures, self._clicks)

    def _falls(self) -> bool:
        batches = list(self._batches)
        earlier, later = _sum(batches[: len(batches) // 2]), _sum(batches[len(batches) // 2 :])
        return later.log_loss < _FALLING_SHARE * earlier.log_loss


def _sum(batches: Sequence[BatchLoss] | Iterable[BatchLoss]) -> BatchLoss:
    batches = list(batches)
    return (
        BatchLoss(*(math.fsum(column) for column in zip(*batches, strict=True))) if batches else BatchLoss(0, 0, 0, 0)
    )


def _constant_loss(p: float, total: BatchLoss) -> float:
    return -total.exposures * math.log1p(-p) - total.clicks * (math.log(p) - math.log1p(-p))
