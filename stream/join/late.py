"""Clicks on rows that were exposed earlier: the shell brings their columns from the examples topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, EXPOSURE
from stream.join.rejects import Reject, event_payload
from stream.join.state.waiting import Events
from stream.records.examples import ExampleRows, concat
from stream.records.topics import CLICKS, EXAMPLES
from stream.records.wire import SCORES

if TYPE_CHECKING:
    from stream.join.output import JoinOutput

_SERVED = ("user_key", "ts_ms", *SCORES, "model_version", "ids", "dense")  # what a click shares with its exposure


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
    late, rows, counts = output.late, output.examples, dict(output.counts)
    if late is None:
        return output
    first = (0 if rows is None else len(rows)) - output.spare
    room = rows.take(slice(first, None)) if rows is not None and output.spare else _room(late, records)
    found = np.zeros(len(late.clicks), np.bool_) if room is None else _fill(room, late, records)
    rejects = [_missing(late, at, partition) for at in np.flatnonzero(~found).tolist()]
    if room is not None and not (output.spare and found.all()):
        before = [] if rows is None or not first else [rows.take(slice(first))]
        rows = concat([*before, room.take(found)]) if first or found.any() else None
    counts["clicks"] = counts.get("clicks", 0) + int(np.count_nonzero(found))
    return replace(
        output, late=None, spare=0, examples=rows, rejects=[*output.rejects, *rejects],
        counts={name: count for name, count in counts.items() if count},
    )  # fmt: skip


def _room(late: LateClicks, records: Mapping[int, ExampleRows]) -> ExampleRows | None:
    """As many rows as there are clicks, not filled; None where no record says how wide they are."""
    like = next((records[offset] for offset in late.wanted() if offset in records), None)
    if like is None:
        return None
    columns: dict[str, Any] = {
        name: np.zeros((len(late.clicks), *column.shape[1:]), column.dtype) for name, column in like.columns().items()
    }
    return ExampleRows(**columns)


def _fill(room: ExampleRows, late: LateClicks, records: Mapping[int, ExampleRows]) -> NDArray[np.bool_]:
    """Write the clicks' examples in their order; which have an exposure, (B,): the rows of the others mean nothing."""
    clicks, columns = late.clicks, room.columns()
    found = np.zeros(len(clicks), np.bool_)
    order = np.argsort(late.example_offsets, kind="stable")
    offsets, starts = np.unique(late.example_offsets[order], return_index=True)
    for offset, of in zip(offsets.tolist(), np.split(order, starts[1:]), strict=True):
        record = records.get(offset)
        if record is None or not len(record):
            continue
        at, there = _rows_in(record, late.rows[of], clicks.impression_id[of])
        found[of] = there
        for name in _SERVED:
            columns[name][of] = getattr(record, name)[at]
    room.kind[:], room.value[:], room.impression_id[:] = CLICK, 0, clicks.impression_id
    room.known_ms[:] = np.maximum(clicks.ts_ms, room.ts_ms)
    room.delay_ms[:] = room.known_ms - room.ts_ms
    room.click_produced_ms[:] = clicks.produced_ms
    return found


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
