"""Columns of a batch that hold few different ids, and the two sums that can then be taken by id instead of by row.

Going forward, a row adds up what its ids give; going back, an id adds up what flows to the rows that hold it.
Shapes: n of the batch's B rows, E columns of which F have few values, N such values in all, W numbers each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel

_ROWS_PER_VALUE = 8  # a column has few values if they occur so often on average; from a quarter of it the GEMM wins
_TOGETHER = 8  # products added at a time, so that their sum is read and written more rarely

Floats = NDArray[np.float32]
Places = NDArray[np.int32]
Groups = tuple[Places, Places]


class FewValues(NamedTuple):
    """Of one batch; a function of nothing else.

    columns : which have few values, F of them · rest : the others, ascending ·
    starts : (F + 1,) where each column's values start in ``places`` · places : (N,) table rows, negative: missing id ·
    slots : (n, F rounded up to eight) int32 into ``places``; what fills it up is N, a product of zeros.
    """

    columns: NDArray[np.intp]
    rest: NDArray[np.intp]
    starts: NDArray[np.intp]
    places: Places
    slots: Places

    def cut(self, rows: slice) -> FewValues:
        """Some of the rows."""
        return self._replace(slots=self.slots[rows])

    def groups(self) -> Groups:
        """The rows, from 0, that hold each slot: of slot s ``rows[starts[s] : starts[s + 1]]``, ascending."""
        starts = np.zeros(len(self.places) + 2, np.int32)
        rows = np.empty(len(self.slots) * len(self.columns), np.int32)
        _group(self.slots, len(self.columns), starts, rows)
        return starts, rows


def few_values(inverse: Places, places: int) -> FewValues | None:
    """The columns of ``inverse`` (B, E), places in 0..places−1 or negative, that have few values; None without any."""
    rows, width = inverse.shape
    slots = np.empty((width + _TOGETHER, rows), np.int32)
    counts = np.zeros(width, np.intp)
    most = rows // _ROWS_PER_VALUE
    found = np.empty(width * most, np.int32)
    _number(np.ascontiguousarray(inverse.T), places, most, slots, counts, found)
    columns = np.flatnonzero(counts)
    if not len(columns):
        return None
    starts = np.concatenate(([0], np.cumsum(counts[columns])))
    slots[len(columns) :] = starts[-1]
    padded = -(-len(columns) // _TOGETHER) * _TOGETHER
    return FewValues(
        columns, np.flatnonzero(counts == 0), starts, found[: starts[-1]], np.ascontiguousarray(slots[:padded].T)
    )


@kernel
def _number(inverse: Places, places: int, most: int, slots: Places, counts: NDArray[np.intp], found: Places) -> None:
    """Number the values of each column of ``inverse`` (E, B) that has at most ``most``, from the first column on."""
    owner = np.full(places + 1, -1, np.int32)  # the column that met a place last; the missing id comes behind all
    number = np.empty(places + 1, np.int32)
    kept, total = 0, 0
    for column in range(len(inverse)):
        count = 0
        for row in range(inverse.shape[1]):
            place = inverse[column, row]
            cell = place if place >= 0 else places
            if owner[cell] != column:
                if count == most:
                    count = 0
                    break
                owner[cell] = column
                number[cell] = total + count
                found[total + count] = place
                count += 1
            slots[kept, row] = number[cell]
        counts[column] = count
        kept += 1 if count else 0
        total += count


@kernel
def _group(slots: Places, columns: int, starts: Places, rows: Places) -> None:
    """Counting sort; the start of slot s is counted at s + 2, so that filling leaves it at s."""
    for row in range(len(slots)):
        for column in range(columns):
            starts[slots[row, column] + 2] += 1
    for slot in range(2, len(starts)):
        starts[slot] += starts[slot - 1]
    for row in range(len(slots)):
        for column in range(columns):
            slot = slots[row, column] + 1
            rows[starts[slot]] = row
            starts[slot] += 1


@kernel
def sum_products(products: Floats, slots: Places, out: Floats) -> None:
    """``out`` (n, W) = the sum of the rows of ``products`` (N + 1, W) that a row's slots name."""
    for row in range(len(slots)):
        for unit in range(out.shape[1]):
            out[row, unit] = 0
        for first in range(0, slots.shape[1], _TOGETHER):
            a, b, c, d = slots[row, first], slots[row, first + 1], slots[row, first + 2], slots[row, first + 3]
            e, f, g, h = slots[row, first + 4], slots[row, first + 5], slots[row, first + 6], slots[row, first + 7]
            for unit in range(out.shape[1]):
                out[row, unit] += (
                    (products[a, unit] + products[b, unit]) + (products[c, unit] + products[d, unit])
                ) + ((products[e, unit] + products[f, unit]) + (products[g, unit] + products[h, unit]))


@kernel
def add_flows(flow: Floats, starts: Places, rows: Places, sums: Floats) -> None:
    """Add to ``sums`` (N or more, W) of each slot the rows of ``flow`` (n, W) that hold it, see ``groups``."""
    for slot in range(len(starts) - 2):
        at, stop = starts[slot], starts[slot + 1]
        while at + 4 <= stop:
            a, b, c, d = rows[at], rows[at + 1], rows[at + 2], rows[at + 3]
            for unit in range(sums.shape[1]):
                sums[slot, unit] += (flow[a, unit] + flow[b, unit]) + (flow[c, unit] + flow[d, unit])
            at += 4
        while at < stop:
            a = rows[at]
            for unit in range(sums.shape[1]):
                sums[slot, unit] += flow[a, unit]
            at += 1


@kernel
def add_to_places(flows: Floats, places: Places, gradients: Floats) -> None:
    """Add ``flows`` (N, W) to the rows of ``gradients`` (U, W or more) that ``places`` (N,) names, unless negative."""
    for slot in range(len(places)):
        place = places[slot]
        if place >= 0:
            for d in range(flows.shape[1]):
                gradients[place, d] += flows[slot, d]
