"""Archived examples in memory: the displays, clicks and conversions that base training makes labelled rows of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.rows import Rows

Index = NDArray[np.intp]

# Column → dtype and the value where there is none.
SCALARS: Mapping[str, tuple[str, float]] = {
    "impression_id": ("u8", 0),
    "label": ("u1", 0),  # 1: this exposure was clicked, as was known at known_ms; of logs that have no rows of clicks
    "ts_ms": ("i8", 0),
    "known_ms": ("i8", 0),
    "kind": ("u1", EXPOSURE),
    "weight": ("f4", 1.0),
    "user_key": ("u8", 0),
    "delay_ms": ("i8", -1),
    "value": ("f4", 0.0),
    "logit": ("f4", 0.0),
    "p": ("f4", 0.0),
    "conversion_logit": ("f4", nan),  # NaN: the model that served had no such head
    "conversion_p": ("f4", nan),
    "propensity": ("f4", 1.0),
    "model_version": ("i8", 0),
    "click_produced_ms": ("i8", 0),
    "partition": ("i4", -1),  # of the examples topic; -1: these examples came from no topic
    "offset": ("i8", -1),  # of the record in its partition
    "ordinal": ("i4", -1),  # of the row in its record
}
MATRICES: Mapping[str, str] = {"ids": "u8", "dense": "f4"}
REQUIRED = frozenset({*MATRICES, "impression_id", "ts_ms", "known_ms"})
"""What an archive must hold; the other columns may be missing."""
MAX_WEIGHT = 1e6
"""Of one row: what stands for more rows than this is a mistake, and would drown all others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """N archived examples: ``rows`` are their ids and dense inputs, ``columns`` the rest, each (N,)."""

    spec_name: str
    spec_hash: str
    rows: Rows
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.rows.ids)

    def take(self, index: Index) -> Examples:
        """The examples at ``index``, in its order."""
        return Examples(
            spec_name=self.spec_name,
            spec_hash=self.spec_hash,
            rows=Rows(self.rows.ids[index], self.rows.dense[index]),
            columns={name: column[index] for name, column in self.columns.items()},
        )

    def before(self, offsets: Mapping[int, int]) -> Examples:
        """Those that stand before ``offsets`` of their partitions (one that is not named: none), or in no topic."""
        partition, offset = self.columns["partition"], self.columns["offset"]
        kept = partition < 0
        for one, end in offsets.items():
            kept |= (partition == one) & (offset < end)
        return self if kept.all() else self.take(np.flatnonzero(kept))

    def exposures(self) -> Index:
        """Indices of the displays: one of each impression."""
        return np.flatnonzero(self.columns["kind"] == EXPOSURE)

    @property
    def end_ms(self) -> int:
        """Event time of the newest event: what became of a display is known up to then."""
        return max(int(self.columns[name].max(initial=0)) for name in ("ts_ms", "known_ms"))

    def clicked(self, index: Index, *, before_ms: int | None = None) -> NDArray[np.bool_]:
        """Whether the impressions of the exposures at ``index`` are known to be clicked, or were before ``before_ms``.

        That a row of a click tells, or the exposure's own label, known at its ``known_ms``.
        """
        labelled = self.columns["label"][index].astype(np.bool_)
        if before_ms is not None:
            labelled &= self.columns["known_ms"][index] < before_ms
        return labelled | self._followed(index, CLICK, before_ms)

    def converted(self, index: Index, *, before_ms: int | None = None) -> NDArray[np.bool_]:
        """Whether they are known to be converted, likewise."""
        return self._followed(index, CONVERSION, before_ms)

    def click_ms(self) -> NDArray[np.int64]:
        """When the impression of each row was clicked, (N,); −1 where that is not known."""
        kind, known_ms, impression = (self.columns[name] for name in ("kind", "known_ms", "impression_id"))
        clicks = np.flatnonzero((kind == CLICK) | ((kind == EXPOSURE) & (self.columns["label"] == 1)))
        clicks = clicks[np.lexsort((known_ms[clicks], impression[clicks]))]
        if not len(clicks):
            return np.full(len(self), -1, np.int64)
        at = np.minimum(np.searchsorted(impression[clicks], impression), len(clicks) - 1)
        return np.where(impression[clicks[at]] == impression, known_ms[clicks[at]], -1)

    def displayed_before(self, stop_ms: int) -> Examples:
        """Without the impressions that were displayed at ``stop_ms`` or later, their clicks and conversions."""
        kept = self.columns["ts_ms"] < stop_ms
        return self if kept.all() else self.take(np.flatnonzero(kept))

    def _followed(self, index: Index, kind: int, before_ms: int | None) -> NDArray[np.bool_]:
        of_kind = self.columns["kind"] == kind
        if before_ms is not None:
            of_kind &= self.columns["known_ms"] < before_ms
        impression = self.columns["impression_id"]
        return np.isin(impression[index], impression[of_kind])
