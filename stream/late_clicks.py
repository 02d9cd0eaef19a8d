"""Clicks on rows that were exposed earlier: the shell brings their columns from the examples topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CLICK, EXPOSURE
from stream.examples import ExampleRows, concat
from stream.join_rejects import Reject, event_payload
from stream.topics import CLICKS, EXAMPLES
from stream.waiting_events import Events

if TYPE_CHECKING:
    from stream.join_output import JoinOutput


class LateClicks(NamedTuple):
    """B first clicks and where the exposures stand that they click."""

    clicks: Events
    click_offsets: NDArray[np.int64]  # (B,) at which the clicks came
    example_offsets: NDArray[np.int64]  # (B,) of the examples records with the exposures
    rows: NDArray[np.int64]  # (B,) of the exposures among those of their record

    @classmethod
    def joined(cls, parts: Sequence[LateClicks]) -> LateClicks:
        """The clicks of all parts, at least one."""
        columns = (np.concatenate(column) for column in list(zip(*parts, strict=True))[1:])
        return cls(Events.joined([part.clicks for part in parts]), *columns)

    def wanted(self) -> list[int]:
        """The offsets of the examples records that are needed, each once, ascending."""
        offsets: list[int] = np.unique(self.example_offsets).tolist()
        return offsets


def click_rows(exposures: ExampleRows, clicks: Events) -> ExampleRows:
    """The examples of clicks, (B,), on these exposures, (B,)."""
    click_ms = np.maximum(clicks.ts_ms, exposures.ts_ms)
    return exposures.with_event(
        CLICK, known_ms=click_ms, delay_ms=click_ms - exposures.ts_ms, click_produced_ms=clicks.produced_ms
    )


def with_late_clicks(output: JoinOutput, records: Mapping[int, ExampleRows], partition: int) -> JoinOutput:
    """The output with the examples of its late clicks, from the wanted records by their offsets.

    Clicks on what is missing there are rejected as late.
    """
    late = output.late
    if late is None:
        return output
    exposures, found = _exposures(late, records)
    rejects = [_missing(late, at, partition) for at in np.flatnonzero(~found).tolist()]
    parts = [] if output.examples is None else [output.examples]
    if exposures is not None:
        parts.append(click_rows(exposures, late.clicks.take(found)))
    counts = dict(output.counts)
    if found.any():
        counts["clicks"] = counts.get("clicks", 0) + int(found.sum())
    examples = concat(parts) if parts else None
    return replace(output, late=None, examples=examples, rejects=[*output.rejects, *rejects], counts=counts)


def _exposures(late: LateClicks, records: Mapping[int, ExampleRows]) -> tuple[ExampleRows | None, NDArray[np.bool_]]:
    """The exposures that are there, in the order of their clicks, and which clicks have one, (B,)."""
    count = len(late.clicks)
    found = np.zeros(count, np.bool_)
    out: dict[str, NDArray[Any]] = {}
    order = np.argsort(late.example_offsets, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(late.example_offsets[order])) + 1, count)
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        of = order[start:end]
        record = records.get(int(late.example_offsets[of[0]]))
        if record is None or not len(record):
            continue
        rows, there = _rows_in(record, late.rows[of], late.clicks.impression_id[of])
        columns = record.columns()
        out = out or {name: np.empty((count, *column.shape[1:]), column.dtype) for name, column in columns.items()}
        found[of[there]] = True
        for name, column in columns.items():
            out[name][of[there]] = column[rows[there]]
    if not found.any():
        return None, found
    exposures = ExampleRows(**out)
    return exposures if found.all() else exposures.take(found), found


def _rows_in(
    record: ExampleRows, rows: NDArray[np.int64], keys: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The rows of a record with these impressions' exposures, mostly ``rows``, and which are there, (B,) each."""
    rows = np.minimum(rows, len(record) - 1)
    there = (record.impression_id[rows] == keys) & (record.kind[rows] == EXPOSURE)
    if there.all():
        return rows, there
    exposed = np.flatnonzero(record.kind == EXPOSURE)
    exposed = exposed[np.argsort(record.impression_id[exposed], kind="stable")]
    if not len(exposed):
        return rows, there
    at = np.searchsorted(record.impression_id[exposed], keys)
    rows = exposed[np.minimum(at, len(exposed) - 1)]
    return rows, record.impression_id[rows] == keys


def _missing(late: LateClicks, at: int, partition: int) -> Reject:
    detail = (
        f"{EXAMPLES}[{partition}] no longer holds the exposure that it clicks (offset {int(late.example_offsets[at])})"
    )
    return Reject(CLICKS, int(late.click_offsets[at]), "late", detail, event_payload(CLICKS, late.clicks, at))
