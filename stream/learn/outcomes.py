"""The outcome of a record in the learning loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.examples.terms import Terms
from learners.metrics.divergence import BatchLoss
from stream.records.examples import ExampleRows
from stream.records.wire import JournalRecord, Silence


@dataclass(frozen=True, slots=True)
class Learned:
    """One learn step. The logits are those of the model before it learned these rows."""

    journal: JournalRecord
    rows: ExampleRows
    logits: NDArray[np.float32]  # (B,)
    terms: Terms  # (B,) of the click head: what the rows paid
    loss: BatchLoss  # progressive, of the click head


@dataclass(frozen=True, slots=True)
class Skipped:
    """A batch that left the weights as they were, because its gradients were not finite."""

    journal: JournalRecord
    rows: ExampleRows
    detail: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Rows that cannot be learned; ``rows`` are only the bad ones."""

    partition: int
    offset: int
    reason: str
    detail: str
    rows: ExampleRows


@dataclass(frozen=True, slots=True)
class Diverged:
    """One batch after the other was skipped, or the loss left all bounds: nothing is learned or published more."""

    detail: str


@dataclass(frozen=True, slots=True)
class Silent:
    """Clicks that should have come did not: nothing is published until they do."""

    since_ms: int  # the first display that is left out
    missing_clicks: float


@dataclass(frozen=True, slots=True)
class Heard:
    """Clicks came again; what was displayed in the silence is left out."""

    silence: Silence


LearnOutcome = Learned | Skipped | Rejected | Diverged | Silent | Heard
