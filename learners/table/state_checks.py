"""Whether the arrays of a state can be an embedding table's: names, types, shapes and values, before one is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.table import sketch
from learners.table.arrays import ALWAYS, NO_COLUMN
from learners.table.config import TableConfig
from learners.table.memory import most_rows

_DTYPES: Mapping[str, str] = {
    "keys": "u8", "values": "f4", "accumulators": "f4", "seen": "u4", "column": "u2", "pending": "u8", "removed": "u8",
    "sketch": "u1", "sightings": "i8", "admitted": "i8", "expired": "i8", "evicted": "i8", "clock": "i8",
}  # fmt: skip
_MOST_EPOCHS = 1 << 32


def check_state(
    state: Mapping[str, NDArray[Any]], dim: int, default_keys: NDArray[np.uint64], config: TableConfig
) -> None:
    """ValueError for a state that is none of a table of these, or whose numbers no learning leads to."""
    missing = sorted(_DTYPES.keys() - state.keys())
    if missing:
        raise ValueError(f"a table state without {missing} cannot be continued. Take it from EmbeddingTable.state().")
    for name, dtype in _DTYPES.items():
        if state[name].dtype != np.dtype(dtype):
            raise ValueError(
                f"{name} of a table state is {state[name].dtype}, which must be {np.dtype(dtype)}: its numbers would "
                "mean others. It was damaged; use another snapshot."
            )
    _check_sizes(state, dim, default_keys, config)
    _check_keys(state, default_keys)
    _check_numbers(state, len(default_keys))


def _check_sizes(
    state: Mapping[str, NDArray[Any]], dim: int, default_keys: NDArray[np.uint64], config: TableConfig
) -> None:
    keys, values, columns = state["keys"], state["values"], len(default_keys)
    capacity = most_rows(dim, columns, config.max_rows)
    if keys.ndim != 1 or values.shape != (len(keys), dim + 1) or len(keys) >= capacity:
        raise ValueError(
            f"a state of {keys.size} keys and values {values.shape} does not fit a table of {dim} + 1 numbers "
            f"a row and at most {capacity} rows: it came from another dim or max_rows. Use the snapshot's "
            "config."
        )
    rows, of_columns = (len(keys),), (columns,)
    wanted = {"accumulators": (len(keys), 2), "seen": rows, "column": rows, "sightings": (3,), "clock": (1,)}
    wanted |= dict.fromkeys(("expired", "evicted"), of_columns)
    wanted |= {name: (state[name].size,) for name in ("pending", "removed")}
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ValueError(
                f"{name} of a table state is {state[name].shape}, which must be {shape} beside {len(keys)} keys and "
                f"{columns} columns: rows would be told apart wrongly. It was damaged; use another snapshot."
            )
    if state["sketch"].shape != (empty := sketch.cells(config.sketch_bytes, config.admit_after)).shape:
        raise ValueError(
            f"a sketch of {state['sketch'].shape} cells does not fit {empty.shape}: sightings would "
            "be forgotten. Use the snapshot's sketch_bytes and admit_after."
        )


def _check_keys(state: Mapping[str, NDArray[Any]], default_keys: NDArray[np.uint64]) -> None:
    keys = state["keys"]
    if not (keys[1:] > keys[:-1]).all() or (len(keys) and not keys[0]):
        raise ValueError(
            f"the {len(keys)} keys of a state must ascend from 1 on: two rows of one key would be one, and 0 has none. "
            "It was damaged; use another snapshot."
        )
    if not np.isin(default_keys, keys).all() or state["admitted"].shape != (len(default_keys),):
        raise ValueError(
            f"a state of {state['admitted'].size} columns lacks some of the default keys {default_keys}: it "
            "came from other columns, and their rows would mean nothing. Use the snapshot's feature spec."
        )
    at = np.searchsorted(keys, default_keys)
    if (state["seen"][at] != ALWAYS).any() or (state["column"][at] != np.arange(len(default_keys))).any():
        raise ValueError(
            f"seen {state['seen'][at]} and column {state['column'][at]} of the default rows must be {ALWAYS} and 0 to "
            f"{len(default_keys) - 1}: they would expire like others. It was damaged; use another snapshot."
        )
    pending = state["pending"]
    if len(pending) and not (keys[np.minimum(np.searchsorted(keys, pending), len(keys) - 1)] == pending).all():
        raise ValueError(
            f"some of the {len(pending)} pending keys have no row among {len(keys)}: no delta could be made of them. "
            "It was damaged; use another snapshot."
        )


def _check_numbers(state: Mapping[str, NDArray[Any]], columns: int) -> None:
    bounds: dict[str, tuple[float, float]] = {"sightings": (0, np.inf), "clock": (0, _MOST_EPOCHS - 1)}
    bounds |= dict.fromkeys(("accumulators", "admitted", "expired", "evicted"), (0, np.inf))
    for name, (low, high) in bounds.items():
        array = state[name]
        if array.size and not (array.min() >= low and array.max() <= high and array.max() < np.inf):  # false for NaN
            raise ValueError(_out_of_bounds(name, array, f"{low:g} to {high:g}"))
    if not np.isfinite(state["values"]).all():
        raise ValueError(_out_of_bounds("values", state["values"], "finite"))
    column = state["column"]
    if ((column >= columns) & (column != NO_COLUMN)).any():
        raise ValueError(_out_of_bounds("column", column, f"0 to {columns - 1}, or {NO_COLUMN} for none"))
    if state["sightings"][0] > 1:
        raise ValueError(_out_of_bounds("sightings", state["sightings"], "0 or 1 at first: of the sketch's halves"))


def _out_of_bounds(name: str, array: NDArray[Any], bound: str) -> str:
    return (
        f"{name} of a table state lies between {array.min()} and {array.max()}, and must be {bound}: no learning leads "
        "there, and every prediction that meets it would be wrong. Use another snapshot."
    )
