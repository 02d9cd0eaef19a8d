"""Examples in memory: the columns of an examples record as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.features.rows import Rows
from stream.records.wire import ExamplesRecord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleRows:
    """B examples; the columns, their types and their units are those of `ExamplesRecord`."""

    kind: NDArray[np.uint8]  # (B,) of `learners.examples.kinds`
    impression_id: NDArray[np.uint64]  # (B,)
    user_key: NDArray[np.uint64]  # (B,)
    ts_ms: NDArray[np.int64]  # (B,) display time
    known_ms: NDArray[np.int64]  # (B,) event time of the display, click or conversion
    delay_ms: NDArray[np.int64]  # (B,) click − display, conversion − click; 0: exposure
    value: NDArray[np.float32]  # (B,) of a conversion
    logit: NDArray[np.float32]  # (B,)
    p: NDArray[np.float32]  # (B,)
    conversion_logit: NDArray[np.float32]  # (B,) NaN: the model that served had no such head
    conversion_p: NDArray[np.float32]  # (B,)
    propensity: NDArray[np.float32]  # (B,)
    model_version: NDArray[np.int64]  # (B,)
    click_produced_ms: NDArray[np.int64]  # (B,) wall clock, 0: none
    ids: NDArray[np.uint64]  # (B, F)
    dense: NDArray[np.float32]  # (B, K)

    def __len__(self) -> int:
        return len(self.impression_id)

    @property
    def nbytes(self) -> int:
        """Memory taken by the columns."""
        return sum(column.nbytes for column in self.columns().values())

    @classmethod
    def empty(cls, n_fields: int, n_dense: int) -> ExampleRows:
        """Return no rows of F = `n_fields` id columns and K = `n_dense` dense columns."""
        widths = {"fields": (n_fields,), "dense_inputs": (n_dense,), "": ()}
        return cls(
            **{
                name: np.empty((0, *widths[width]), dtype=dtype)
                for name, (dtype, _, width) in ExamplesRecord.LAYOUT.items()
            }
        )

    @classmethod
    def from_record(cls, record: ExamplesRecord) -> ExampleRows:
        """Return read-only views of a record's columns. Raises RecordError (``schema``) when lengths do not fit."""
        return cls(**record.arrays())

    def to_record(self, spec_hash: str, watermark_ms: int) -> ExamplesRecord:
        """Return the record of these rows under the feature spec `spec_hash`."""
        return ExamplesRecord.of(
            spec_hash=spec_hash,
            rows=len(self),
            fields=self.ids.shape[1],
            dense_inputs=self.dense.shape[1],
            watermark_ms=watermark_ms,
            **self.columns(),
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, index: NDArray[Any] | slice) -> ExampleRows:
        """Return the rows at `index` (integers, a mask or a slice), in its order."""
        return ExampleRows(**{name: column[index] for name, column in self.columns().items()})

    def put(self, first: int, rows: ExampleRows) -> None:
        """Write rows in place of those at ``first`` and on."""
        for name, column in self.columns().items():
            column[first : first + len(rows)] = getattr(rows, name)

    def with_event(self, kind: int, **columns: NDArray[Any]) -> ExampleRows:
        """Return the same impressions with another event: a kind for all, ``columns`` by row."""
        return replace(self, kind=np.full(len(self), kind, np.uint8), **columns)

    def rows(self) -> Rows:
        """Return what a learner reads, not copied."""
        return Rows(self.ids, self.dense)


def concat(parts: Sequence[ExampleRows]) -> ExampleRows:
    """Return the rows of all parts in order. Raises ValueError for no parts: their widths would be unknown."""
    if not parts:
        raise ValueError("nothing to concatenate: without a part the widths are unknown. Use ExampleRows.empty(F, K).")
    if len(parts) == 1:
        return parts[0]
    return ExampleRows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].columns()})
