"""Slices of the traffic that have a correction and figures of their own, as the feature spec plans them.

A row's path is one number: its code in every slice, first slice first. Paths form a tree: the rows with the first k
codes of a path are a node of depth k, and what a node is worth is shrunk to its parent, the node of depth k − 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

CODE_BITS: Final = 12
MOST_SLICES: Final = 3
_OTHER: Final = 2**CODE_BITS - 1
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the high bits of the product


@dataclass(frozen=True)
class Slice:
    """Rows that share the value of an id column, or the bucket of a dense input.

    column : of ``Rows.ids`` where there are no ``edges``, else of ``Rows.dense``.
    edges : bucket k holds edges[k−1] <= value < edges[k].
    """

    name: str
    column: int
    edges: tuple[float, ...] = ()

    def codes(self, ids: NDArray[np.uint64], dense: NDArray[np.float32]) -> NDArray[np.int64]:
        """(B,) codes of B rows: the bucket, or 12 bits of the id (0: missing)."""
        if self.edges:
            return np.searchsorted(np.array(self.edges), dense[:, self.column], side="right").astype(np.int64)
        value = ids[:, self.column]
        hashed = (value * _MULTIPLIER) >> np.uint64(64 - CODE_BITS)
        return np.where(value == 0, 0, 1 + hashed.astype(np.int64) % (_OTHER - 1))

    def value_name(self, code: int) -> str:
        """How figures name a code: the bounds of the bucket, or the code of the id."""
        if code == _OTHER:
            return "other"
        if not self.edges:
            return f"{code:03x}" if code else "missing"
        low = f"{self.edges[code - 1]:g}" if code else "-inf"
        high = f"{self.edges[code]:g}" if code < len(self.edges) else "inf"
        return f"[{low}, {high})"


@dataclass(frozen=True)
class SlicePlan:
    """Which slices there are, the most general first; none: all rows are alike.

    An id column of more values than `most_paths` (of all slices together) would keep evidence of nothing: paths beyond
    it, those with the fewest rows, become one, "other".
    """

    slices: tuple[Slice, ...] = ()
    most_paths: int = 128

    def __post_init__(self) -> None:
        if len(self.slices) > MOST_SLICES:
            raise ValueError(
                f"{len(self.slices)} slices of the calibration are more than {MOST_SLICES}: their product would split "
                "the clicks too thin to correct anything. Name the most telling ones."
            )

    @cached_property
    def fingerprint(self) -> int:
        """Equal for plans whose paths mean the same; what is counted by another plan does not add."""
        text = repr([(one.name, one.column, one.edges) for one in self.slices])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    @property
    def depth(self) -> int:
        """How many slices there are: the depth of a full path."""
        return len(self.slices)

    def paths(self, ids: NDArray[np.uint64], dense: NDArray[np.float32]) -> NDArray[np.int64]:
        """(B,) paths of B rows, (B, F) ids and (B, K) dense inputs; 0 without slices."""
        path = np.zeros(len(ids), np.int64)
        for one in self.slices:
            path = path << CODE_BITS | one.codes(ids, dense)
        return path

    def codes(self, paths: NDArray[np.int64], at: int) -> NDArray[np.int64]:
        """The codes of the slice number ``at`` in paths."""
        return np.asarray(paths >> (CODE_BITS * (self.depth - 1 - at)) & _OTHER)

    def nodes(self, paths: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
        """The nodes of ``depth`` (0: all rows) that paths go through; unlike any node of another depth."""
        return np.asarray(np.int64(depth << CODE_BITS * MOST_SLICES) | paths >> CODE_BITS * (self.depth - depth))

    def firsts(self, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The nodes of depth 1 that lead to nodes of depth 1 or more."""
        depth = nodes >> CODE_BITS * MOST_SLICES
        code = (nodes & 2 ** (CODE_BITS * MOST_SLICES) - 1) >> CODE_BITS * (depth - 1)
        return np.asarray(np.int64(1 << CODE_BITS * MOST_SLICES) | code)

    @property
    def other(self) -> int:
        """The path of the rows whose own would be one too many."""
        return int(2 ** (CODE_BITS * self.depth) - 1)


def named_slices(
    names: Sequence[tuple[str, tuple[float, ...]]], id_columns: Sequence[str], dense_columns: Sequence[str]
) -> tuple[Slice, ...]:
    """Slices by the names of their columns, each with its edges (none: an id column).

    Raises ValueError for a column that does not exist.
    """
    found: list[Slice] = []
    for name, edges in names:
        columns: Sequence[str] = dense_columns if edges else id_columns
        if name not in columns:
            what = "dense input" if edges else "id column"
            raise ValueError(f"slice {name!r} of the calibration is no {what}; there are {', '.join(columns)}.")
        found.append(Slice(name, list(columns).index(name), edges))
    return tuple(found)
