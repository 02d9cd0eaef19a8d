"""From the exported state of an embedding table back to its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.table.arrays import HELD, SIGHTED, SIGHTED_BEFORE, TURN, USED, Store, heads_of

_ARRAYS = frozenset(
    "keys values accumulators seen column pending removed sketch sightings admitted expired evicted clock".split()
)


def check_state(state: Mapping[str, NDArray[Any]], store: Store, default_keys: NDArray[np.uint64]) -> None:
    """ValueError for a state that does not fit these arrays and default keys."""
    (capacity, width), columns = store.numbers.shape, len(default_keys)
    missing = sorted(_ARRAYS - state.keys())
    if missing:
        raise ValueError(f"a table state without {missing} cannot be continued. Take it from EmbeddingTable.state().")
    keys, values = state["keys"], state["values"]
    if values.shape != (len(keys), width - 2) or len(keys) >= capacity:
        raise ValueError(
            f"a state of {len(keys)} keys and values {values.shape} does not fit a table of {width - 3} + 1 numbers "
            f"a row and at most {capacity} rows: it came from another dim or max_rows. Use the snapshot's "
            "config."
        )
    if not (keys[1:] > keys[:-1]).all():
        raise ValueError(
            f"the {len(keys)} keys of a state must ascend: two rows of one key would be one. It was damaged; use "
            "another snapshot."
        )
    if not np.isin(default_keys, keys).all() or len(state["admitted"]) != columns:
        raise ValueError(
            f"a state of {len(state['admitted'])} columns lacks some of the default keys {default_keys}: it "
            "came from other columns, and their rows would mean nothing. Use the snapshot's feature spec."
        )
    if state["sketch"].shape != store.sketch.shape:
        raise ValueError(
            f"a sketch of {state['sketch'].shape} cells does not fit {store.sketch.shape}: sightings would "
            "be forgotten. Use the snapshot's sketch_bytes and admit_after."
        )


def fill(store: Store, state: Mapping[str, NDArray[Any]], default_keys: NDArray[np.uint64]) -> None:
    """Write a checked state into empty arrays; the index is not built."""
    keys, columns = state["keys"], len(default_keys)
    rows = np.zeros(len(keys), np.int32)
    rows[np.searchsorted(keys, default_keys)] = np.arange(1, 1 + columns)
    rows[rows == 0] = np.arange(1 + columns, 1 + len(keys))
    store.heads[rows, 0] = keys
    store.heads[rows, 1] = heads_of(state["seen"], state["column"])
    dim = store.numbers.shape[1] - 3
    store.numbers[rows, : dim + 1] = state["values"]
    store.numbers[rows, dim + 1 :] = state["accumulators"]
    store.counters[USED], store.counters[HELD] = 1 + len(keys), len(keys)
    store.counters[[TURN, SIGHTED, SIGHTED_BEFORE]] = state["sightings"]
    store.sketch[...], store.admitted[...] = state["sketch"], state["admitted"]
