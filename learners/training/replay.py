"""The warm start of a day: a base, and after it what came since its split, learned as the stream would have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM
from learners.examples.examples import Examples
from learners.examples.kinds import EXPOSURE
from learners.examples.split import arrived
from learners.examples.terms import CONVERSION_HEAD, Terms
from learners.metrics.quality import Quality, quality
from learners.training.fit import rows_at


def replay(
    model: DeepFM,
    examples: Examples,
    span_ms: tuple[int, int],
    *,
    heads: tuple[str, ...],
    batch_rows: int,
    mature_until_ms: int = 2**62,
    shares: NDArray[np.float32] | None = None,
    labelled: NDArray[np.uint64] | None = None,
    report: Callable[[int], None] = lambda rows: None,
) -> Quality:
    """Learn what happened in a span of event time, in that order; the progressive quality of its mature displays.

    Rates are the model's own and nothing is weighted or left out by class: from here on the model learns what the
    stream will go on with. Batches are full; the stream also cuts one when its time has come. ``report`` gets the
    rows of every step. A click pays the conversion head the share ``shares`` (N,) of its examples' terms (see
    `learners.training.conversion_shares`), and nothing, nor its conversion, where its impression is among
    ``labelled``: those whose label it has learned already.
    """
    events = arrived(examples, span_ms, conversions=CONVERSION_HEAD in heads)
    terms = Terms.of_kinds(events.kind, heads, examples.columns["weight"][events.rows])
    if shares is not None and CONVERSION_HEAD in heads:
        impression = examples.columns["impression_id"][events.rows]
        learned = np.isin(impression, labelled) if labelled is not None else np.zeros(len(impression), np.bool_)
        at = heads.index(CONVERSION_HEAD)
        exposure, event = (of.reshape(len(impression), len(heads)) for of in terms)
        exposure[:, at] *= shares[events.rows] * ~learned
        event[:, at] *= ~learned
    logits = np.empty(len(events.rows), np.float32)
    for start in range(0, len(logits), batch_rows):
        step = slice(start, min(start + batch_rows, len(logits)))
        rows = rows_at(examples, events.rows[step])
        logits[step] = model.predict_many(rows)
        model.advance(int(events.time_ms[step.stop - 1]))
        model.learn_terms(rows, terms.take(step))
        report(step.stop - step.start)
    judged = (events.kind == EXPOSURE) & (events.time_ms < mature_until_ms)
    return quality(logits[judged], examples.clicked(events.rows[judged]))
