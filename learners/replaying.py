"""The warm start of a day: a base, and after it what came since its split, learned as the stream would have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from learners.deepfm import DeepFM
from learners.examples import Examples
from learners.fitting import rows_at
from learners.kinds import SETTLED
from learners.metrics import Quality, quality
from learners.split import arrived
from learners.targets import CONVERTED, arrivals


def replay(
    model: DeepFM,
    examples: Examples,
    span_ms: tuple[int, int],
    *,
    heads: tuple[str, ...],
    batch_rows: int,
    report: Callable[[int], None] = lambda rows: None,
) -> Quality:
    """Learn what became known in a span of event time, in that order; the progressive quality of its settled rows.

    Rates are the model's own and rows are neither weighted nor left out by class: from here on the model learns what
    the stream will go on with. Batches are full; the stream also cuts one when its time has come. ``report`` is told
    the rows of every step.
    """
    index = arrived(examples, span_ms, conversions=CONVERTED in heads)
    known_ms, kind, label, weight = (examples.columns[name] for name in ("known_ms", "kind", "label", "weight"))
    targets = arrivals(kind[index], label[index], heads, weight=weight[index])
    logits = np.empty(len(index), np.float32)
    for start in range(0, len(index), batch_rows):
        places = np.arange(start, min(start + batch_rows, len(index)))
        rows = rows_at(examples, index[places])
        logits[places] = model.predict_many(rows)
        model.advance(int(known_ms[index[places[-1]]]))
        model.learn_many(rows, *targets.at(places))
        report(len(places))
    settled: NDArray[np.bool_] = kind[index] == SETTLED
    return quality(logits[settled], examples.clicked(index[settled]))
