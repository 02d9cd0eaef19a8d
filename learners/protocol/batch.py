"""A learning batch, checked before anything changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.protocol.checks import check_finite, checked_labels, checked_terms, checked_weight


class Batch(NamedTuple):
    """B rows whose labels are known.

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


class TermsBatch(NamedTuple):
    """B rows that pay terms of the log loss: ids (B, F) uint64, dense (B, K) float32, terms (B,)."""

    ids: NDArray[np.uint64]
    dense: NDArray[np.float32]
    terms: Terms

    @property
    def weight(self) -> NDArray[np.float32]:
        """(B,) what a row counts for: its weight if it was labelled, else that of its exposure or its event."""
        return np.maximum(self.terms.exposure, self.terms.event)

    def where(self, kept: NDArray[np.bool_]) -> TermsBatch:
        """The rows of a (B,) mask."""
        return TermsBatch(self.ids[kept], self.dense[kept], Terms(self.terms.exposure[kept], self.terms.event[kept]))


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


def checked_terms_batch(shape: ModelShape, rows: Rows, terms: Terms) -> TermsBatch:
    """The batch, or ValueError.

    Raises
    ------
    ValueError
        No rows, wrong widths or lengths, dense inputs or weights that are not finite, negative weights.
    """
    check_widths(rows, shape)
    exposure, event = checked_terms(terms, len(rows.ids))
    check_finite("dense inputs", rows.dense, "Reject such rows before learning.")
    return TermsBatch(rows.ids, rows.dense, Terms(exposure[:, 0], event[:, 0]))


def terms_of_labels(shape: ModelShape, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None) -> Terms:
    """The weighted log loss of labelled rows as terms, (B,). Raises ValueError as ``checked_batch`` does."""
    batch_rows = len(rows.ids)
    check_widths(rows, shape)
    target, scale = checked_labels(labels, batch_rows), checked_weight(weight, batch_rows)
    return Terms.of_labels(target.reshape(-1), scale.reshape(-1))
