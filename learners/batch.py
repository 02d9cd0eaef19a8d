"""A learning batch, checked before anything changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.checks import check_finite, checked_labels, checked_weight
from learners.rows import Rows
from learners.shape import ModelShape


class Batch(NamedTuple):
    """B rows to learn from.

    ids : (B, F) uint64 · dense : (B, K) float32 · target : (B,) float32, 0 or 1 · weight : (B,) float32, not negative.
    """

    ids: NDArray[np.uint64]
    dense: NDArray[np.float32]
    target: NDArray[np.float32]
    weight: NDArray[np.float32]

    @property
    def rows(self) -> Rows:
        """What there was to predict from."""
        return Rows(self.ids, self.dense)

    def where(self, kept: NDArray[np.bool_]) -> Batch:
        """The rows of a (B,) mask."""
        return Batch(self.ids[kept], self.dense[kept], self.target[kept], self.weight[kept])


def check_widths(rows: Rows, shape: ModelShape) -> None:
    """Raise ValueError unless ids and dense inputs are as wide as the feature spec says, row for row."""
    ids, dense = rows.ids.shape, rows.dense.shape
    if ids[1:] != (shape.id_columns,) or dense != (ids[0], shape.dense):
        raise ValueError(
            f"ids {ids} and dense {dense} must be (B, {shape.id_columns}) and (B, {shape.dense}): the columns are "
            f"those of feature spec {shape.spec_name} ({shape.spec_hash}). Encode the rows with it."
        )


def checked_batch(shape: ModelShape, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None) -> Batch:
    """The batch, or ValueError.

    Raises
    ------
    ValueError
        No rows, wrong widths or lengths, labels outside {0, 1}, dense inputs or weights that are not finite, negative
        weights.
    """
    check_widths(rows, shape)
    target, scale = checked_labels(labels, len(rows.ids)), checked_weight(weight, len(rows.ids))
    check_finite("dense inputs", rows.dense, "Reject such rows before learning.")
    return Batch(rows.ids, rows.dense, target, scale)
