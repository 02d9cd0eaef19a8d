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
    number = np.arange(first + 1, first + 1 + len(rows.ids))
    return concat([_of_kind(rows, number, EXPOSURE), _of_kind(rows, number, CLICK)])


def _of_kind(rows: ClickRows, number: NDArray[np.int64], kind: int) -> ExampleRows:
    kept = np.flatnonzero(rows.labels) if kind == CLICK else np.arange(len(number))
    features = feature_rows(rows, kept)
    ts_ms, count = number[kept] * _MS, len(kept)
    zeros = np.zeros(count, np.float32)
    delay_ms = np.full(count, 1_000 if kind == CLICK else 0)
    return ExampleRows(
        kind=np.full(count, kind, np.uint8),
        impression_id=number[kept].astype(np.uint64),
        user_key=number[kept].astype(np.uint64),
        ts_ms=ts_ms,
        known_ms=ts_ms + delay_ms,
        delay_ms=delay_ms,
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


if __name__ == "__main__":
    take_turns(ShippedLoop, hashed)
