"""Clicks that may convert: their rows, packed for a store, and the store of the backtest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION
from stream.records.examples import ExampleRows, concat
from stream.records.wire import ExamplesRecord

CONVERSION_TIME_BYTES = 8  # behind its packed click, little-endian ms


class StoredClicks(NamedTuple):
    """B clicks: the example of each, and the event times of its conversions, ms."""

    examples: ExampleRows
    converted_ms: list[NDArray[np.int64]]


def clicks_in(examples: ExampleRows) -> tuple[ExampleRows, ExampleRows]:
    """The clicks among these examples, and the conversions."""
    return examples.take(examples.kind == CLICK), examples.take(examples.kind == CONVERSION)


def packed(rows: ExampleRows) -> list[bytes]:
    """Each row as bytes."""
    dtype = _row_dtype(rows.ids.shape[1], rows.dense.shape[1])
    data = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        data[name] = getattr(rows, name)
    return _cut(data.tobytes(), dtype.itemsize)


def packed_times(ts_ms: NDArray[np.int64]) -> list[bytes]:
    """Each time as bytes."""
    return _cut(ts_ms.astype("<i8").tobytes(), CONVERSION_TIME_BYTES)


def unpacked(values: Sequence[bytes], n_fields: int, n_dense: int) -> StoredClicks:
    """The clicks again: each a packed row, and the packed times of its conversions behind it.

    Values of another layout are left out: their writer had other columns.
    """
    dtype = _row_dtype(n_fields, n_dense)
    size = dtype.itemsize
    fitting = [value for value in values if len(value) >= size and (len(value) - size) % CONVERSION_TIME_BYTES == 0]
    data = np.frombuffer(b"".join(value[:size] for value in fitting), dtype)
    rows = ExampleRows(**{name: np.ascontiguousarray(data[name]) for name in dtype.names or ()})
    return StoredClicks(rows, [np.frombuffer(value, "<i8", offset=size) for value in fitting])


def _cut(raw: bytes, size: int) -> list[bytes]:
    return [raw[at : at + size] for at in range(0, len(raw), size)]


@cache
def _row_dtype(n_fields: int, n_dense: int) -> np.dtype[Any]:
    widths = {"fields": (n_fields,), "dense_inputs": (n_dense,), "": ()}
    return np.dtype([(name, dtype, widths[width]) for name, (dtype, _, width) in ExamplesRecord.LAYOUT.items()])


class MemoryClickStore:
    """Clicks in this process; as the store in Redis, but nothing expires and nothing is awaited."""

    def __init__(self, n_fields: int, n_dense: int) -> None:
        self._none = ExampleRows.empty(n_fields, n_dense)
        self._rows: dict[int, ExampleRows] = {}
        self._converted_ms: defaultdict[int, list[int]] = defaultdict(list)

    def put(self, examples: ExampleRows) -> None:
        """Store what became known."""
        clicks, conversions = clicks_in(examples)
        for at, key in enumerate(clicks.impression_id.tolist()):
            self._rows.setdefault(key, clicks.take(slice(at, at + 1)))
        for key, ts_ms in zip(conversions.impression_id.tolist(), conversions.known_ms.tolist(), strict=True):
            self._converted_ms[key].append(ts_ms)

    def find(self, keys: NDArray[np.uint64]) -> StoredClicks:
        """Those of the clicks that are known."""
        found = [key for key in keys.tolist() if key in self._rows]
        converted_ms = [np.array(self._converted_ms.get(key, []), np.int64) for key in found]
        return StoredClicks(concat([self._none, *(self._rows[key] for key in found)]), converted_ms)
