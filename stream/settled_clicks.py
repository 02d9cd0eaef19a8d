"""Clicks that settled and may convert: their rows, packed for a store, and the store of the backtest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION
from stream.examples import ExampleRows, concat
from stream.records import ExamplesRecord


class SettledClicks(NamedTuple):
    """B clicks: the positive example of each, and whether it has converted, (B,)."""

    examples: ExampleRows
    converted: NDArray[np.bool_]


def clicks_in(examples: ExampleRows) -> tuple[ExampleRows, NDArray[np.uint64]]:
    """The clicks that became known with these examples, and the impression ids of those that converted."""
    converted = examples.kind == CONVERSION
    return examples.take((examples.label != 0) & ~converted), examples.impression_id[converted]


def packed(rows: ExampleRows) -> list[bytes]:
    """Each row as bytes."""
    dtype = _row_dtype(rows.ids.shape[1], rows.dense.shape[1])
    data = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        data[name] = getattr(rows, name)
    raw, size = data.tobytes(), dtype.itemsize
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def unpacked(values: Sequence[bytes], n_fields: int, n_dense: int) -> ExampleRows:
    """The rows again. Raises ValueError for bytes of another layout."""
    dtype = _row_dtype(n_fields, n_dense)
    data = np.frombuffer(b"".join(values), dtype)
    return ExampleRows(**{name: np.ascontiguousarray(data[name]) for name in dtype.names or ()})


def row_bytes(n_fields: int, n_dense: int) -> int:
    """How long a packed row is."""
    return _row_dtype(n_fields, n_dense).itemsize


@cache
def _row_dtype(n_fields: int, n_dense: int) -> np.dtype[Any]:
    widths = {"fields": (n_fields,), "dense_inputs": (n_dense,), "": ()}
    return np.dtype([(name, dtype, widths[width]) for name, (dtype, _, width) in ExamplesRecord.LAYOUT.items()])


class MemoryClickStore:
    """Settled clicks in this process; as the store in Redis, but nothing expires and nothing is awaited."""

    def __init__(self, n_fields: int, n_dense: int) -> None:
        self._none = ExampleRows.empty(n_fields, n_dense)
        self._rows: dict[int, ExampleRows] = {}
        self._converted: set[int] = set()

    def put(self, examples: ExampleRows) -> None:
        """Take up what became known."""
        clicks, converted = clicks_in(examples)
        for at, key in enumerate(clicks.impression_id.tolist()):
            self._rows.setdefault(key, clicks.take(slice(at, at + 1)))
        self._converted.update(converted.tolist())

    def find(self, keys: NDArray[np.uint64]) -> SettledClicks:
        """Those of the clicks that are known."""
        found = [key for key in keys.tolist() if key in self._rows]
        converted = np.array([key in self._converted for key in found], bool)
        return SettledClicks(concat([self._none, *(self._rows[key] for key in found)]), converted)
