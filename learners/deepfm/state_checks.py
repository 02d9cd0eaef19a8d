"""Whether a state can be a DeepFM's of a config and shape: checked before any memory is taken for the model.

A config that was altered may ask for more than a machine has; what the arrays beside it hold bounds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.config import DeepFMConfig
from learners.deepfm.dense_shapes import dense_shapes
from learners.features.shape import ModelShape
from learners.nn.optimiser import check_shapes, padded_size
from learners.protocol.state_names import under
from learners.table.state_checks import check_state as check_table_state

_ADAM: Mapping[str, str] = {"adam.first": "f4", "adam.second": "f4", "adam.steps": "i8", "adam.rows": "f8"}
_LATER = {"adam.rows"}  # states of before it have none
_NOT_NEGATIVE = {"adam.second", "adam.steps", "adam.rows"}


def check_state(config: DeepFMConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> None:
    """ValueError for a state that lacks arrays, is of another config or shape, or holds impossible numbers."""
    learned, statistics = dense_shapes(config, columns=len(shape.embedded), dense=shape.dense)
    dense = under("dense.", state)
    check_shapes({**learned, **statistics}, dense)
    _check_adam(state, padded_size(learned))
    for name, array in [*dense.items(), *((name, state[name]) for name in _ADAM if name in state)]:
        wanted = np.dtype(_ADAM.get(name, "f4"))
        low = array.min(initial=0) if name in _NOT_NEGATIVE else 0
        if array.dtype != wanted or not np.isfinite(array).all() or low < 0:
            raise ValueError(
                f"{name} of a model state is {array.dtype} between {array.min(initial=0)} and {array.max(initial=0)}, "
                f"and must be finite {wanted}{', not negative' if name in _NOT_NEGATIVE else ''}: every prediction "
                "would be wrong. Use another snapshot."
            )
    check_table_state(under("table.", state), config.dim, shape.default_keys, config.table)


def _check_adam(state: Mapping[str, NDArray[Any]], size: int) -> None:
    for name in _ADAM:
        wanted = (size,) if name in ("adam.first", "adam.second") else (1,)
        if name not in state and name in _LATER:
            continue
        if name not in state or state[name].shape != wanted:
            raise ValueError(
                f"a model state without {name!r} of {wanted} cannot be continued"
                f"{f', it has {state[name].shape}' if name in state else ''}: take it from DeepFM.state()."
            )
