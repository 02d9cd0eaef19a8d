"""Which example rows a model learns, and why the others are rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.terms import CONVERSION_HEAD
from learners.training.sampling import uniform
from stream.records.examples import ExampleRows
from stream.records.limits import LAST_VERSION, LATEST_MS

_LAST_KIND = max(EXPOSURE, CLICK, CONVERSION)
_BOUNDS = (
    ("ts_ms", "time", LATEST_MS - 1),
    ("known_ms", "time", LATEST_MS - 1),
    ("delay_ms", "time", LATEST_MS - 1),
    ("click_produced_ms", "time", LATEST_MS - 1),
    ("model_version", "schema", LAST_VERSION),
)
"""Columns of 64-bit numbers: what a bad one is rejected for, and the last that can be right."""
MOST_DENSE = 1e4
"""Dense inputs are log-odds and logarithms, tens at the most: one row of 1e15 would move the whole model, one of 1e30
make the gradients of its batch overflow, and have the batch left out."""
_SAMPLING_SEED = 11  # another draw than those of base training


@dataclass(frozen=True, slots=True)
class Fault:
    """Rows that no model can learn; ``reason`` is the dead letter's."""

    reason: str
    detail: str
    rows: NDArray[np.intp]
    column: str = ""  # whose value is wrong; "": several


def faults(rows: ExampleRows) -> list[Fault]:
    """The rows that cannot be learned by reason; a row with several faults counts for the first."""
    return _by_first_fault(rows, impossible(rows))


def _by_first_fault(rows: ExampleRows, wrong: list[Fault]) -> list[Fault]:
    found: list[Fault] = []
    left = np.ones(len(rows), np.bool_)
    for fault in (_not_finite(rows), *wrong):
        where = fault.rows[left[fault.rows]]
        left[where] = False
        if len(where):
            detail = f"{len(where)} of {len(rows)} rows have {fault.detail}; the first is row {where[0]}"
            if fault.column:
                detail += f" with {fault.column} {getattr(rows, fault.column)[where[0]]}"
            found.append(Fault(fault.reason, detail, where, fault.column))
    return found


class Scored(Protocol):
    """What serving computed for B rows; the conversion's are NaN where its model has no such head."""

    @property
    def logit(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def p(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def conversion_logit(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def conversion_p(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def propensity(self) -> NDArray[np.float32]: ...  # noqa: D102


def impossible_scores(rows: Scored) -> NDArray[np.bool_]:
    """(B,) which rows no serving has answered: what counts or archives them could not be read again.

    A model can learn such ones: their features are not in doubt.
    """
    bad = ~np.isfinite(rows.logit) | np.isinf(rows.conversion_logit)
    for shares in (rows.p, rows.propensity):
        bad |= ~((shares >= 0) & (shares <= 1))  # true for NaN
    bad |= (rows.conversion_p < 0) | (rows.conversion_p > 1)
    return bad


class Checked(NamedTuple):
    """What one look at B rows found."""

    faults: list[Fault]
    possible: ExampleRows  # the same object where all of them are sound
    learnable: NDArray[np.bool_]  # (B,)

    @classmethod
    def of(cls, rows: ExampleRows, heads: Sequence[str]) -> Checked:
        """What `faults`, `possible` and `learnable` say of them."""
        wrong = impossible(rows)
        found = _by_first_fault(rows, wrong)
        return cls(found, _without(rows, wrong), _learnable(rows, heads, found))


def impossible(rows: ExampleRows) -> list[Fault]:
    """The rows that no join has written, by what is wrong; none in a record that is as it was written."""
    if not len(rows):
        return []
    found: list[Fault] = []
    if int(rows.kind.max()) > _LAST_KIND:
        found.append(Fault("schema", "an unknown kind of example", np.flatnonzero(rows.kind > _LAST_KIND), "kind"))
    for name, reason, last in _BOUNDS:
        column = getattr(rows, name)
        if int(column.min()) < 0 or int(column.max()) > last:
            where = np.flatnonzero((column < 0) | (column > last))
            found.append(Fault(reason, f"a {name} that is not from 0 to {last}", where, name))
    if not np.isfinite(rows.value).all():
        found.append(Fault("schema", "a value that is not finite", np.flatnonzero(~np.isfinite(rows.value)), "value"))
    return found


def possible(rows: ExampleRows) -> ExampleRows:
    """The rows without those that are `impossible`: the same object where all of them are sound."""
    return _without(rows, impossible(rows))


def _without(rows: ExampleRows, wrong: list[Fault]) -> ExampleRows:
    return rows.take(unfaulted(len(rows), wrong)) if wrong else rows


def unfaulted(count: int, found: Sequence[Fault]) -> NDArray[np.bool_]:
    """(count,) which of so many rows none of the faults is about."""
    kept = np.ones(count, np.bool_)
    for fault in found:
        kept[fault.rows] = False
    return kept


def _not_finite(rows: ExampleRows) -> Fault:
    bad = np.flatnonzero(~(np.abs(rows.dense) <= MOST_DENSE).all(axis=1))  # NaN is not
    return Fault("not_finite", f"dense inputs that are not finite, or beyond {MOST_DENSE:g}", bad)


def learnable(rows: ExampleRows, heads: Sequence[str]) -> NDArray[np.bool_]:
    """(B,) rows without a fault: exposures, clicks, and conversions when a head learns them."""
    return _learnable(rows, heads, faults(rows))


def _learnable(rows: ExampleRows, heads: Sequence[str], found: list[Fault]) -> NDArray[np.bool_]:
    kept = unfaulted(len(rows), found)
    if CONVERSION_HEAD not in heads:
        kept &= rows.kind != CONVERSION
    return kept


def sampled(rows: ExampleRows, exposure_rate: float) -> NDArray[np.bool_]:
    """(B,) all clicks and conversions, and exposures by a hash of their impression: the same ones wherever they stand.

    An exposure that is kept pays its term 1 / ``exposure_rate`` times, a click its own once: the expected gradient is
    that of all rows, so that no log-odds are to be corrected.
    """
    if exposure_rate >= 1.0:
        return np.ones(len(rows), np.bool_)
    kept: NDArray[np.bool_] = (rows.kind != EXPOSURE) | (uniform(rows.impression_id, _SAMPLING_SEED) < exposure_rate)
    return kept


def term_weight(kind: NDArray[np.uint8], exposure_rate: float) -> NDArray[np.float32]:
    """(B,) what the terms of sampled rows are multiplied by."""
    return np.where(kind == EXPOSURE, np.float32(1.0 / exposure_rate), np.float32(1.0))
