"""Checks of a learning batch, made before anything changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.examples.terms import Terms

MAX_WEIGHT = 1e6
"""Of one row: what stands for more rows than this is a mistake, and would drown all others."""


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
