"""Logistic regression over hashed ids, learned by FTRL-proximal.

H. B. McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1: each coordinate has its
own falling rate, and an L1 bound keeps coordinates with little evidence at zero. The plain baseline of the field: fast,
hard to break, blind to how ids combine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.models.ftrl_kernels import learn, logits_of
from learners.protocol.batch import check_widths, checked_terms_batch, terms_of_labels

_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: multiply, keep the high bits (Knuth, TAOCP 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class FtrlConfig:
    """Rates and size."""

    alpha: float = 0.05  # the rate of a coordinate without history is alpha / beta
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    table_rows: int = 2**20  # 16 MB; of a hundred thousand ids in use one in ten shares its weight with another
    dense: bool = True  # False: ids alone, as in the paper

    def __post_init__(self) -> None:
        for name, low in (("alpha", 1e-12), ("beta", 0.0), ("l1", 0.0), ("l2", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name}={value} must be finite and at least {low:g}: the rates would have no sign.")
        if self.beta == 0 and self.l2 == 0:
            raise ValueError("beta=0 with l2=0: a coordinate without history would be divided by 0. Take beta=1.")
        rows = self.table_rows
        if rows < 2 or rows & (rows - 1):
            raise ValueError(
                f"table_rows={rows} must be a power of two of at least 2: ids are spread by the high bits of their "
                f"hash. Take {1 << max(1, rows - 1).bit_length()}."
            )


class FtrlRegression:
    """Learns row after row: a batch is a loop over its rows, in their order.

    Memory is fixed: 16 bytes for each of ``table_rows``. Two ids may share a weight.
    """

    def __init__(self, config: FtrlConfig, shape: ModelShape) -> None:
        self.config, self.shape = config, shape
        self._columns = np.array(shape.embedded, np.intp)
        self._dense = shape.dense if config.dense else 0
        self._shift = np.uint64(64 - (config.table_rows.bit_length() - 1))
        self._rates = (config.alpha, config.beta, config.l1, config.l2)
        self._z = np.zeros(1 + self._dense + config.table_rows)
        self._n = np.zeros_like(self._z)

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32. Changes nothing."""
        check_widths(rows, self.shape)
        return logits_of(self._coordinates(rows.ids), self._inputs(rows.dense), self._z, self._n, self._rates)

    def learn_terms(self, rows: Rows, terms: Terms) -> None:
        """A step for each row, with the gradient exposure·σ(z) − event. Raises ValueError; then nothing was learned."""
        batch = checked_terms_batch(self.shape, rows, terms)
        coordinates, inputs = self._coordinates(batch.ids), self._inputs(batch.dense)
        learn(coordinates, inputs, batch.terms.exposure, batch.terms.event, self._z, self._n, self._rates)

    def learn_many(self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None) -> None:
        """``learn_terms`` of labelled rows; ``weight`` scales a row's gradient (default 1)."""
        self.learn_terms(rows, terms_of_labels(self.shape, rows, labels, weight))

    def advance(self, event_ms: int) -> None:
        """Nothing here ages."""

    def _coordinates(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        keys = np.ascontiguousarray(ids[:, self._columns])
        coordinates: NDArray[np.int64] = ((keys * _FIBONACCI) >> self._shift).astype(np.int64)
        coordinates += 1 + self._dense
        coordinates[keys == 0] = 0
        return coordinates

    def _inputs(self, dense: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(dense[:, : self._dense], np.float32)

    def state(self) -> dict[str, NDArray[Any]]:
        """The coordinates that ever had a gradient: ``ftrl.rows`` ascending, and their ``ftrl.z`` and ``ftrl.n``."""
        rows = np.flatnonzero(self._n)
        return {"ftrl.rows": rows, "ftrl.z": self._z[rows], "ftrl.n": self._n[rows]}

    @classmethod
    def from_state(cls, config: FtrlConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """The learner that ``state`` was taken from. Raises ValueError for one of another size or without arrays."""
        learner = cls(config, shape)
        try:
            rows, z, n = state["ftrl.rows"], state["ftrl.z"], state["ftrl.n"]
        except KeyError as error:
            raise ValueError(f"a state without {error} is none of FtrlRegression: it cannot be continued.") from error
        if not len(rows) == len(z) == len(n) or int(rows.max(initial=0)) >= len(learner._z):
            raise ValueError(
                f"a state of {len(rows)}, {len(z)}, {len(n)} coordinates up to {int(rows.max(initial=0))} does not fit "
                f"{len(learner._z)} of them: it came from another config. Use the config that it was learned with."
            )
        learner._z[rows], learner._n[rows] = z, n
        return learner
