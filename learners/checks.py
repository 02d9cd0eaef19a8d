"""Checks of a learning batch, made before anything changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def checked_labels(labels: NDArray[Any], rows: int) -> torch.Tensor:
    """Labels as float32 (rows,); ValueError for an empty batch, another length or a label outside {0, 1}."""
    if rows == 0:
        raise ValueError("a batch of 0 rows must hold at least 1: there is nothing to learn. Skip empty batches.")
    if labels.shape != (rows,):
        raise ValueError(f"labels {labels.shape} must be ({rows},): each row has one label. Pass one per row.")
    target = np.array(labels, np.float32)
    wrong = (target != 0) & (target != 1)
    if wrong.any():
        raise ValueError(
            f"label {labels[wrong][0]} at row {int(np.argmax(wrong))} must be 0 or 1: the log loss has no meaning for "
            "it. Reject such rows before learning."
        )
    return torch.from_numpy(target)


def checked_weight(weight: NDArray[Any] | None, rows: int) -> torch.Tensor:
    """Weights as float32 (rows,), ones for None; ValueError for another length, NaN, infinity or a negative one."""
    if weight is None:
        return torch.ones(rows)
    if weight.shape != (rows,):
        raise ValueError(f"weights {weight.shape} must be ({rows},): each row has one weight. Pass one per row.")
    scale = np.array(weight, np.float32)
    check_finite("weights", scale, "Pass 1 for rows without a weight.")
    if (scale < 0).any():
        raise ValueError(
            f"weight {scale.min():g} must not be negative: the step would climb the loss. Use 0 to leave a row out."
        )
    return torch.from_numpy(scale)


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
