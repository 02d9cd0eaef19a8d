"""From the bytes of the served topic to rows; raises RecordError with the reasons of `stream.records.limits`."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from stream.records.columns import RecordError
from stream.records.limits import (
    LAST_VERSION,
    RejectedRow,
    Why,
    arrays_of,
    check_rows,
    check_size,
    check_watermark,
    decoded,
    has_no_key_or_time,
    why_ahead,
    why_bad,
)
from stream.records.validity import impossible_scores
from stream.records.wire import SCORES, ServedRecord

_BY_ROW = ("impression_id", "row_request", *SCORES, "ad_ids", "ad_dense")  # columns of `ServedRows`
_served_decoder = msgspec.msgpack.Decoder(ServedRecord)


class SpecWidths(Protocol):
    """What the join needs of a feature spec: its hash, and the names (here only their number) of its columns."""

    @property
    def hash(self) -> str: ...  # noqa: D102
    @property
    def request_fields(self) -> Sized: ...  # noqa: D102
    @property
    def ad_fields(self) -> Sized: ...  # noqa: D102
    @property
    def request_dense(self) -> Sized: ...  # noqa: D102
    @property
    def ad_dense(self) -> Sized: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedRows:
    """B served rows of R requests; what belongs to a request is there once, ``row_request`` says whose a row is."""

    impression_id: NDArray[np.uint64]  # (B,)
    row_request: NDArray[np.uint32]  # (B,)
    logit: NDArray[np.float32]  # (B,)
    p: NDArray[np.float32]  # (B,)
    conversion_logit: NDArray[np.float32]  # (B,) NaN: the model has no such head
    conversion_p: NDArray[np.float32]  # (B,)
    propensity: NDArray[np.float32]  # (B,)
    ad_ids: NDArray[np.uint64]  # (B, ad fields)
    ad_dense: NDArray[np.float32]  # (B, ad dense inputs)
    ts_ms: NDArray[np.int64]  # (R,)
    user_key: NDArray[np.uint64]  # (R,)
    model_version: NDArray[np.int64]  # (R,)
    request_ids: NDArray[np.uint64]  # (R, request fields)
    request_dense: NDArray[np.float32]  # (R, request dense inputs)
    watermark_ms: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.impression_id)

    @classmethod
    def empty(cls, spec: SpecWidths) -> ServedRows:
        """Return no rows of a spec's columns."""
        widths = {
            "ad_ids": (len(spec.ad_fields),),
            "ad_dense": (len(spec.ad_dense),),
            "request_ids": (len(spec.request_fields),),
            "request_dense": (len(spec.request_dense),),
        }
        layout = {name: dtype for name, (dtype, _, _) in ServedRecord.LAYOUT.items()} | {"model_version": "<i8"}
        del layout["request_id"]
        columns: dict[str, Any] = {name: np.empty((0, *widths.get(name, ())), dtype) for name, dtype in layout.items()}
        return cls(**columns)

    @property
    def served_ms(self) -> NDArray[np.int64]:
        """When each row was served, (B,)."""
        served_ms: NDArray[np.int64] = self.ts_ms[self.row_request]
        return served_ms


def decode_served(value: bytes | None, spec: SpecWidths) -> ServedRows:
    """Return the rows of one served record. Raises RecordError."""
    if not value:
        raise RecordError("malformed", "the record is empty; expected a served batch")
    check_size(value)
    return served_rows(decoded(_served_decoder, value, "served"), spec)


def served_rows(record: ServedRecord, spec: SpecWidths) -> ServedRows:
    """Return the rows of a served batch, bad ones left out. Raises RecordError."""
    check_watermark(record.watermark_ms)
    check_rows(max(record.rows, record.requests))
    for name, version in (("model_version", record.model_version), ("map_version", record.map_version)):
        if not 0 <= version <= LAST_VERSION:
            raise RecordError("schema", f"{name}={version} must be from 0 to {LAST_VERSION}: no model has it")
    if record.rows or record.requests:
        _check_spec(record, spec)
    columns = arrays_of(record)
    request = columns["row_request"]
    if len(request) and int(request.max()) >= record.requests:
        raise RecordError("schema", f"row_request holds {int(request.max())}, but there are {record.requests} requests")
    del columns["request_id"]
    versions = np.full(record.requests, record.model_version, np.int64)
    rows = ServedRows(**columns, model_version=versions, watermark_ms=record.watermark_ms)
    bad = has_no_key_or_time(rows.impression_id, rows.served_ms)
    return _without_served(rows, bad, why_bad) if bad.any() else rows


def served_until(rows: ServedRows, latest_ms: int) -> ServedRows:
    """Return the rows without those of a later time, which some wrong clock gave them."""
    if not (rows.ts_ms > latest_ms).any():
        return rows
    return _without_served(rows, rows.served_ms > latest_ms, partial(why_ahead, latest_ms))


def with_possible_scores(rows: ServedRows) -> ServedRows:
    """Return the rows without those that no serving has answered."""
    bad = impossible_scores(rows)
    return _without_served(rows, bad, _why_no_scores) if bad.any() else rows


def _why_no_scores(row: Mapping[str, Any], rows: int, at: int) -> tuple[str, str]:
    where = f"row {at} of {rows}: " if rows > 1 else ""
    return "schema", f"{where}a logit that is not finite, or p or propensity not from 0 to 1: no serving answers so"


def _check_spec(record: ServedRecord, spec: SpecWidths) -> None:
    if record.spec_hash != spec.hash:
        raise RecordError(
            "spec",
            f"served under feature spec {record.spec_hash}, this worker joins {spec.hash}: the columns do not fit. "
            "Start serving and workers with one spec.",
        )
    found = (record.request_fields, record.ad_fields, record.request_dense_inputs, record.ad_dense_inputs)
    wanted = (len(spec.request_fields), len(spec.ad_fields), len(spec.request_dense), len(spec.ad_dense))
    if found != wanted:
        raise RecordError("schema", f"request and ad columns, ids then dense, are {found}, the spec has {wanted}")


def _without_served(rows: ServedRows, bad: NDArray[np.bool_], why: Why) -> ServedRows:
    rejected = [*rows.rejected, *(_rejected_served(rows, at, why) for at in np.flatnonzero(bad).tolist())]
    kept: dict[str, Any] = {name: getattr(rows, name)[~bad] for name in _BY_ROW}
    return replace(rows, **kept, rejected=rejected)


def _rejected_served(rows: ServedRows, at: int, why: Why) -> RejectedRow:
    request = int(rows.row_request[at])
    ts_ms, impression_id = int(rows.ts_ms[request]), int(rows.impression_id[at])
    payload = {
        "impression_id": str(impression_id),
        "ts_ms": ts_ms,
        "user_key": str(int(rows.user_key[request])),
        "model_version": int(rows.model_version[request]),
        **{name: float(getattr(rows, name)[at]) for name in SCORES},
        "ids": [*map(str, rows.request_ids[request].tolist()), *map(str, rows.ad_ids[at].tolist())],
        "dense": [*rows.request_dense[request].tolist(), *rows.ad_dense[at].tolist()],
    }
    reason, detail = why({"impression_id": impression_id, "ts_ms": ts_ms}, len(rows), at)
    return RejectedRow(reason, detail, orjson.dumps(payload))
