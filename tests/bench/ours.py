"""Millstream's DeepFM as a contestant. ``python -m tests.bench.ours ROWS_FOLDER THREADS``.

It gets what the examples topic carries: 64-bit hashed ids, in batches of ``BATCH``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from tests.bench.rows import BATCH, DIM, FIELDS, HIDDEN, ClickRows
from tests.bench.turns import take_turns

_VECTOR_RATE = 0.0025
_DENSE_RATE = 1e-3  # Adam, as every peer's default
_NAMES = tuple(f"f{field}" for field in range(FIELDS))
SHAPE = ModelShape(
    spec_name="bench", spec_hash="0" * 16, id_columns=FIELDS, embedded=tuple(range(FIELDS)), names=_NAMES, dense=0
)


class OurDeepFM:
    """``learn_many`` batch after batch. The learning rate that varies is the vectors'; the weights' is ten times it."""

    def __init__(self, rate: float | None, threads: int = 1) -> None:
        rate = rate or _VECTOR_RATE
        config = DeepFMConfig(
            dim=DIM, hidden=HIDDEN, vector_rate=rate, weight_rate=10 * rate, dense_rate=_DENSE_RATE, threads=threads
        )
        self.model = DeepFM(config, SHAPE)

    def learn(self, rows: ClickRows) -> None:
        """One step a batch."""
        for start in range(0, len(rows.ids), BATCH):
            part = slice(start, start + BATCH)
            self.model.learn_many(feature_rows(rows, part), rows.labels[part])

    def probabilities(self, rows: ClickRows) -> NDArray[Any]:
        """The sigmoid of ``predict_many``, in batches."""
        starts = range(0, len(rows.ids), BATCH)
        logits = [self.model.predict_many(feature_rows(rows, slice(start, start + BATCH))) for start in starts]
        return 1 / (1 + np.exp(-np.concatenate(logits).astype(np.float64)))


def feature_rows(rows: ClickRows, part: slice) -> Rows:
    """Of the rows of ``part``."""
    ids = rows.ids[part]
    return Rows(ids.view(np.uint64), np.zeros((len(ids), 0), np.float32))


def hashed(rows: ClickRows) -> ClickRows:
    """Ids as 64-bit hashes, salted by column: SplitMix64's finaliser, a bijection, so that no two ids meet."""
    x = rows.ids.astype(np.uint64) + (np.arange(1, FIELDS + 1, dtype=np.uint64) << np.uint64(32))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ClickRows((x ^ (x >> np.uint64(31))).view(np.int64), rows.labels > 0.5)


if __name__ == "__main__":
    threads = int(sys.argv[2])
    take_turns(lambda rate: OurDeepFM(rate, threads), hashed)
