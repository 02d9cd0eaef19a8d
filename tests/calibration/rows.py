"""Synthetic click streams and the hypothesis strategies that the tests of this package share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.logistic import sigmoid


class Rows(NamedTuple):
    """B rows: raw logits, labels, weights."""

    logits: NDArray[np.float32]
    labels: NDArray[np.bool_]
    weight: NDArray[np.float32]

    def part(self, start: int, stop: int | None = None, step: int = 1) -> Rows:
        """The rows start, start + step, ... before stop."""
        rows = slice(start, stop, step)
        return Rows(self.logits[rows], self.labels[rows], self.weight[rows])


@st.composite
def rows(draw: st.DrawFn, max_rows: int = 60) -> Rows:
    """Any rows a calibrator accepts, logits beyond the grid among them."""
    row = st.tuples(
        st.floats(-40, 40, width=32),
        st.booleans(),
        st.one_of(st.just(0.0), st.floats(0, 1000, width=32)),
    )
    drawn = draw(st.lists(row, max_size=max_rows))
    logits, labels, weight = zip(*drawn, strict=True) if drawn else ((), (), ())
    return Rows(np.array(logits, np.float32), np.array(labels, np.bool_), np.array(weight, np.float32))


def drifting_stream(seed: int, count: int, *, start: float, stop: float, bias: float, stretch: float = 1.0) -> Rows:
    """Rows whose true log-odds drift from mean `start` to `stop`; the raw logits are stretched and biased."""
    random = np.random.default_rng(seed)
    true = random.normal(0.0, 1.0, count) + np.linspace(start, stop, count)
    labels = random.random(count) < sigmoid(true)
    return Rows((true * stretch + bias).astype(np.float32), labels, np.ones(count, np.float32))


def log_loss(labels: NDArray[np.bool_], p: NDArray[np.floating[Any]]) -> float:
    """Mean negative log-likelihood in nats."""
    p = np.clip(np.asarray(p, np.float64), 1e-7, 1 - 1e-7)
    return float(-np.where(labels, np.log(p), np.log1p(-p)).mean())
