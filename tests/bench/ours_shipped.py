"""Millstream as it ships: the learning loop on records of displays and clicks.

``python -m tests.bench.ours_shipped ROWS_FOLDER``, with the variable that `tests.bench.rows.SHIPPED` names.

Everything that the worker does for a record once it is decoded: checks, silence, pending rows, prediction before
learning, the level of the click rate, the step, loss, journal and the delta, which nobody takes here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.config import DeepFMConfig
from learners.deepfm.model import DeepFM
from learners.examples.kinds import CLICK, EXPOSURE
from stream.learn.config import LearningConfig
from stream.learn.loop import LearningLoop
from stream.records.examples import ExampleRows, concat
from tests.bench.ours import SHAPE, feature_rows, hashed
from tests.bench.rows import BATCH, ClickRows
from tests.bench.turns import take_turns

_RECORD = 8 * BATCH  # impressions
_MS = 10  # between two displays
_DELAY_MS = 1_000  # of a click


class ShippedLoop:
    """`LearningLoop.step`, record after record: displays, then the clicks on them."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None:
            raise ValueError(f"rate={rate}: the shipped rates are measured. Give None.")
        self._loop = LearningLoop(DeepFM(DeepFMConfig(), SHAPE), LearningConfig(), 1)
        self._record = 0

    def learn(self, rows: ClickRows) -> None:
        """All rows, one record of the examples topic after the other."""
        for start in range(0, len(rows.ids), _RECORD):
            part = rows.part(start, start + _RECORD)
            examples = _examples(part, self._record * _RECORD)
            self._loop.step(examples, 0, self._record, int(examples.known_ms.max()))
            self._loop.take_publication()
            self._record += 1

    def probabilities(self, rows: ClickRows) -> NDArray[Any]:
        """Not measured here: the loop learns each row once, in time."""
        raise NotImplementedError("the log loss is measured with tests.bench.ours")


def _examples(rows: ClickRows, first: int) -> ExampleRows:
    number, count = np.arange(first + 1, first + 1 + len(rows.ids)), len(rows.ids)
    features, zeros = feature_rows(rows, slice(None)), np.zeros(count, np.float32)
    shown = ExampleRows(
        kind=np.full(count, EXPOSURE, np.uint8),
        impression_id=number.astype(np.uint64),
        user_key=number.astype(np.uint64),
        ts_ms=number * _MS,
        known_ms=number * _MS,
        delay_ms=np.zeros(count, np.int64),
        value=zeros,
        logit=zeros,
        p=zeros + np.float32(0.2),
        conversion_logit=zeros,
        conversion_p=zeros,
        propensity=zeros + 1,
        model_version=np.zeros(count, np.int64),
        click_produced_ms=np.zeros(count, np.int64),
        ids=features.ids,
        dense=features.dense,
    )
    clicked = shown.take(np.flatnonzero(rows.labels))
    delay_ms = np.full(len(clicked), _DELAY_MS)
    return concat([shown, clicked.with_event(CLICK, known_ms=clicked.ts_ms + delay_ms, delay_ms=delay_ms)])


if __name__ == "__main__":
    take_turns(ShippedLoop, hashed)
