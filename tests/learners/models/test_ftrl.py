"""FTRL-proximal against the algorithm in plain Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.models.ftrl import FtrlConfig, FtrlRegression
from tests.learners.batches import SHAPE, batch

LARGE = 2**20  # rows: the few ids of these tests do not collide


class Reference:
    """McMahan et al. 2013, algorithm 1, with a dict of coordinates."""

    def __init__(self, config: FtrlConfig) -> None:
        self.config = config
        self.z: dict[Any, float] = {}
        self.n: dict[Any, float] = {}

    def features(self, rows: Rows, row: int) -> dict[Any, float]:
        """The coordinates of a row and their values."""
        found: dict[Any, float] = {"bias": 1.0}
        if self.config.dense:
            found |= {("dense", k): float(x) for k, x in enumerate(rows.dense[row])}
        return found | {int(rows.ids[row, at]): 1.0 for at in SHAPE.embedded if rows.ids[row, at]}

    def weight(self, name: Any) -> float:
        """Line 5."""
        c, z, n = self.config, self.z.get(name, 0.0), self.n.get(name, 0.0)
        if abs(z) <= c.l1:
            return 0.0
        return -(z - math.copysign(c.l1, z)) / ((c.beta + math.sqrt(n)) / c.alpha + c.l2)

    def logit(self, rows: Rows, row: int) -> float:
        """The product of weights and inputs."""
        return sum(self.weight(name) * x for name, x in self.features(rows, row).items())

    def learn(self, rows: Rows, row: int, exposure: float, event: float) -> None:
        """Lines 7 to 11, on the two terms of the log loss."""
        error = exposure / (1 + math.exp(-self.logit(rows, row))) - event
        weights = {name: self.weight(name) for name in self.features(rows, row)}
        for name, x in self.features(rows, row).items():
            gradient, n = error * x, self.n.get(name, 0.0)
            sigma = (math.sqrt(n + gradient**2) - math.sqrt(n)) / self.config.alpha
            self.z[name] = self.z.get(name, 0.0) + gradient - sigma * weights[name]
            self.n[name] = n + gradient**2


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
)
def test_it_is_the_algorithm(seed: int, rows: int, l1: float, l2: float, dense: bool) -> None:
    """Logits after a batch of random terms equal those of the slow reference; distinct ids a row."""
    generator = np.random.default_rng(seed)
    config = FtrlConfig(alpha=0.3, beta=0.7, l1=l1, l2=l2, table_rows=LARGE, dense=dense)
    learner, reference = FtrlRegression(config, SHAPE), Reference(config)
    x, _ = batch(generator, rows)
    x = x._replace(ids=np.where(x.ids, x.ids + 100 * np.arange(5, dtype=np.uint64), 0).astype(np.uint64))
    exposure, event = 2 * generator.random((2, rows)).astype(np.float32)
    learner.learn_terms(x, Terms(exposure, event))
    for row in range(rows):
        reference.learn(x, row, float(exposure[row]), float(event[row]))
    expected = [reference.logit(x, row) for row in range(rows)]
    np.testing.assert_allclose(learner.predict_many(x), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_is_its_rows_one_after_the_other() -> None:
    """Bit for bit."""
    one, other = (FtrlRegression(FtrlConfig(table_rows=64), SHAPE) for _ in range(2))
    x, labels = batch(np.random.default_rng(0), 50)
    one.learn_many(x, labels)
    for row in range(50):
        other.learn_many(Rows(x.ids[row : row + 1], x.dense[row : row + 1]), labels[row : row + 1])
    assert np.array_equal(one.predict_many(x), other.predict_many(x))


def test_l1_leaves_ids_with_little_evidence_at_zero() -> None:
    """With a bound above what a few rows can move, only the prior logit 0 is left."""
    learner = FtrlRegression(FtrlConfig(l1=100.0), SHAPE)
    x, labels = batch(np.random.default_rng(0), 50)
    learner.learn_many(x, labels)
    assert not learner.predict_many(x).any()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 must be finite and at least"),
        ({"l1": -1.0}, "l1=-1.0"),
        ({"beta": 0.0}, "beta=0 with l2=0"),
        ({"table_rows": 100}, r"table_rows=100 must be a power of two.*Take 128"),
    ],
)
def test_settings_that_cannot_learn_are_refused(settings_: dict[str, Any], message: str) -> None:
    """The message names the value and the consequence."""
    with pytest.raises(ValueError, match=message):
        FtrlConfig(**settings_)


def test_a_state_of_a_larger_table_is_refused() -> None:
    """A coordinate beyond the table is an error, and no wrong weight."""
    big = FtrlRegression(FtrlConfig(table_rows=LARGE), SHAPE)
    big.learn_many(*batch(np.random.default_rng(0), 50, vocabulary=1000))
    with pytest.raises(ValueError, match="does not fit"):
        FtrlRegression.from_state(FtrlConfig(table_rows=16), SHAPE, big.state())
