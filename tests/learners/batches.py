"""Random batches and small models for the learners' tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.rows import Rows
from learners.features.shape import ModelShape

SHAPE = ModelShape(
    spec_name="toy",
    spec_hash="0123456789abcdef",
    id_columns=5,
    embedded=(0, 1, 3, 4),
    names=("user", "tab", "ad", "author"),
    dense=3,
)
CONFIG = DeepFMConfig(dim=4, hidden=(8, 6), vector_rate=0.05, weight_rate=0.08, dense_rate=0.01, init_scale=0.1, seed=3)


def model(config: DeepFMConfig = CONFIG) -> DeepFM:
    """A fresh small model."""
    return DeepFM(config, SHAPE)


def batch(generator: np.random.Generator, rows: int, vocabulary: int = 12) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows with many duplicate ids and some missing ones (0), and labels."""
    ids = generator.integers(0, vocabulary, (rows, SHAPE.id_columns)).astype(np.uint64)
    dense = generator.standard_normal((rows, SHAPE.dense)).astype(np.float32)
    return Rows(ids, dense), generator.random(rows) < 0.4


def learned(steps: int, seed: int = 0, config: DeepFMConfig = CONFIG) -> DeepFM:
    """A model after some steps."""
    generator, trained = np.random.default_rng(seed), model(config)
    for _ in range(steps):
        rows, labels = batch(generator, 16)
        trained.learn_many(rows, labels)
    return trained
