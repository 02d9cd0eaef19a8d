"""A model's state as arrays by name, copied at once or in steps, and the hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.protocol.state_names import prefixed
from learners.table.table import EmbeddingTable

State = dict[str, NDArray[Any]]


def to_state(table: Mapping[str, NDArray[Any]], rest: State) -> State:
    """The table's arrays under ``table.`` and the rest beside them."""
    return {**prefixed("table.", table), **rest}


def sha256_of(state: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over the weights that a prediction depends on: keys and values by ascending key, dense ones by name."""
    digest = hashlib.sha256()
    for name in ("table.keys", "table.values", *sorted(name for name in state if name.startswith("dense."))):
        digest.update(np.ascontiguousarray(state[name]).data)
    return digest.hexdigest()


class ModelCopy:
    """A model as it was when this was made. ``step`` between learning steps; then ``state``, in any thread."""

    def __init__(self, table: EmbeddingTable, rest: State) -> None:
        self._of, self._table, self._rest = table, table.begin_snapshot(), rest

    @property
    def done(self) -> bool:
        """Whether everything has been copied."""
        return self._table.done

    def step(self, max_bytes: int = 1 << 23) -> bool:
        """Copy about ``max_bytes`` more; whether that was the end."""
        if not self.done and self._table.step(max_bytes):
            self._of.end_snapshot()
        return self.done

    def state(self) -> State:
        """What the model's ``state`` would have returned at the beginning; RuntimeError before ``step`` is done."""
        return to_state(self._table.state(), self._rest)
