"""A learning batch, checked before anything changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.examples import MAX_WEIGHT
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.features.shape import ModelShape


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


def checked_labels(labels: NDArray[Any], rows: int, heads: int = 1) -> NDArray[np.float32]:
    """Labels (rows,) or (rows, heads) as float32 of that shape; for one head both are fine.

    ValueError for an empty batch, another shape or a label outside {0, 1}.
    """
    if rows == 0:
        raise ValueError("a batch of 0 rows must hold at least 1: there is nothing to learn. Skip empty batches.")
    shapes = [(rows,), (rows, 1)] if heads == 1 else [(rows, heads)]
    if labels.shape not in shapes:
        raise ValueError(
            f"labels {labels.shape} must be {shapes[0]}: each row has one label for each of {heads} heads. Pass those."
        )
    target = np.array(labels, np.float32)
    wrong = (target != 0) & (target != 1)
    if wrong.any():
        where = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"label {labels[tuple(where)]} at row {where[0]} must be 0 or 1: the log loss has no meaning for it. "
            "Reject such rows before learning."
        )
    return target


def checked_weight(weight: NDArray[Any] | None, rows: int, heads: int = 1) -> NDArray[np.float32]:
    """Weights (rows,) or, for several heads, (rows, heads), as float32 of that shape; ones for None.

    ValueError for another shape, NaN, infinity, a negative one or one above ``MAX_WEIGHT``.
    """
    if weight is None:
        return np.ones(rows, np.float32)
    if weight.shape not in ((rows,), (rows, heads)):
        raise ValueError(
            f"weights {weight.shape} must be ({rows},) or ({rows}, {heads}): each row has one weight, or one for each "
            "head. Pass those."
        )
    scale = np.array(weight, np.float32)
    _check_range("weight", scale)
    return scale


def checked_terms(terms: Terms, rows: int, heads: int = 1) -> Terms:
    """The terms of a batch as float32 of (rows, heads); for one head (rows,) are fine too.

    ValueError for an empty batch, another shape, NaN, infinity, a negative weight or one above ``MAX_WEIGHT``.
    """
    if rows == 0:
        raise ValueError("a batch of 0 rows must hold at least 1: there is nothing to learn. Skip empty batches.")
    shapes = [(rows,), (rows, 1)] if heads == 1 else [(rows, heads)]
    for name, part in zip(("exposure", "event"), terms, strict=True):
        if np.shape(part) not in shapes:
            raise ValueError(
                f"terms: {name} {np.shape(part)} must be {shapes[0]}: each row pays each of {heads} heads its own "
                "terms. Make them with Terms.of_kinds or Terms.of_labels."
            )
    exposure, event = (np.array(part, np.float32).reshape(rows, heads) for part in terms)
    _check_range("exposure weight", exposure)
    _check_range("event weight", event)
    return Terms(exposure, event)


def _check_range(what: str, weight: NDArray[np.float32]) -> None:
    """Raise ValueError for weights that are not finite, negative or huge."""
    check_finite(f"{what}s", weight, "Pass 1 for rows without a weight.")
    if (weight < 0).any():
        raise ValueError(
            f"{what} {weight.min():g} must not be negative: the step would climb the loss. Use 0 to leave a row out."
        )
    if (weight > MAX_WEIGHT).any():
        raise ValueError(
            f"{what} {weight.max():g} must not exceed {MAX_WEIGHT:g}: one row would drown all others. Scale the "
            "weights down."
        )


def check_finite(what: str, array: NDArray[np.float32], remedy: str) -> None:
    """Raise ValueError naming the first number of ``array`` that is NaN or infinite."""
    finite = np.isfinite(array)
    if finite.all():
        return
    where = tuple(np.argwhere(~finite)[0].tolist())
    raise ValueError(
        f"{what} hold {array[where]} at {where} and must be finite: one such number would spread to every weight. "
        f"{remedy}"
    )
