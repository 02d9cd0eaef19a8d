"""What the base model, never updated, says of the same rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM
from stream.records.examples import ExampleRows

CHUNK_ROWS = 8_192


def frozen_logits(base: DeepFM, examples: ExampleRows) -> NDArray[np.float32]:
    """Logits of the base model for every example, (B,) float32: same ids, same live features, frozen weights."""
    parts = [
        base.predict_many(examples.take(slice(at, at + CHUNK_ROWS)).rows())
        for at in range(0, len(examples), CHUNK_ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
