"""Click rows shaped like the Criteo display log: 39 id columns, Zipf-distributed ids, labels of a logistic model."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# 13 numeric columns cut into 64 buckets each, then 26 categorical columns; 1.45 million ids in all.
CARDINALITIES = (
    *(64,) * 13,
    *(1445, 553, 300_000, 180_000, 305, 18, 11_839, 629, 4, 40_000, 5300, 280_000, 3165),
    *(26, 11_600, 230_000, 10, 4700, 2030, 4, 250_000, 16, 15, 75_000, 90, 55_000),
)
FIELDS = len(CARDINALITIES)
SHIPPED = "BENCH_SHIPPED_SIZES"
"""Environment variable: set, the sizes are those that Millstream ships with, and not those of the literature."""
DIM = 16
HIDDEN: tuple[int, ...] = (64, 32) if SHIPPED in os.environ else (512, 256, 128)
BATCH = 128 if SHIPPED in os.environ else 2048
_ZIPF_EXPONENT = 1.1
_BASE_LOGIT = -1.3  # before the ids' weights: a click rate of about one in four
_WEIGHT_SCALE = 0.25  # standard deviation of an id's true weight


class ClickRows(NamedTuple):
    """Rows of one stream, in order.

    ids : (n, 39) int32 as generated, each column counting from 0; a contestant may hold them in another type.
    labels : (n,) float32, 0 or 1.
    """

    ids: NDArray[Any]
    labels: NDArray[Any]

    def part(self, start: int, stop: int) -> ClickRows:
        """Rows [start, stop)."""
        return ClickRows(self.ids[start:stop], self.labels[start:stop])


def click_rows(count: int, seed: int = 0) -> ClickRows:
    """Rows of independent columns; ``seed`` draws the rows; popularity and true weights are always the same."""
    rng = np.random.default_rng(seed)
    ids = np.empty((count, FIELDS), np.int32)
    logits = np.full(count, _BASE_LOGIT)
    for field, cardinality in enumerate(CARDINALITIES):
        world = np.random.default_rng((7, field))
        popularity = world.permutation(cardinality)
        weights = world.normal(0, _WEIGHT_SCALE, cardinality)
        ids[:, field] = popularity[_zipf_ranks(rng, count, cardinality)]
        logits += weights[ids[:, field]]
    clicked = rng.random(count) < 1 / (1 + np.exp(-logits))
    return ClickRows(ids, clicked.astype(np.float32))


def _zipf_ranks(rng: np.random.Generator, count: int, cardinality: int) -> NDArray[np.int64]:
    """Ranks drawn from the bounded Zipf law by its inverse distribution function."""
    mass = np.cumsum(np.arange(1, cardinality + 1) ** -_ZIPF_EXPONENT)
    ranks: NDArray[np.int64] = np.searchsorted(mass, rng.random(count) * mass[-1])
    return np.minimum(ranks, cardinality - 1, out=ranks)


def save(rows: ClickRows, folder: Path) -> None:
    """Write the rows where ``load`` of another process finds them."""
    np.save(folder / "ids.npy", rows.ids)
    np.save(folder / "labels.npy", rows.labels)


def load(folder: Path) -> ClickRows:
    """Read what ``save`` wrote."""
    return ClickRows(np.load(folder / "ids.npy"), np.load(folder / "labels.npy"))


def step_megaflop() -> float:
    """Multiplications and additions of the MLP's GEMMs, forward and twice backward, in millions a row."""
    widths = (FIELDS * DIM, *HIDDEN, 1)
    products = sum(inputs * outputs for inputs, outputs in pairwise(widths))
    return 3 * 2 * float(products) / 1e6
