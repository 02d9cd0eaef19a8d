"""The records of the topics: columnar batches as msgpack of Structs whose arrays are little-endian bytes.

One record carries many rows, because Faust's cost is per record. The three public inputs (impressions, clicks,
conversions) also accept the JSON of a single event.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import msgspec

from stream.records.columns import Columns

_DETAIL_CHARACTERS = 2_000
_PAYLOAD_BYTES = 4 << 20  # the rest of a longer record is where it came from


SCORES = ("logit", "p", "conversion_logit", "conversion_p", "propensity")
"""The columns of a served row that serving computed, all float32 and one a row."""


class ServedRecord(Columns, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="record", tag="served"):
    """What serving answered: R requests and B rows (request x ad), with the very ids and dense inputs it used.

    ``row_request[i]`` is the request of row i. Request-scoped columns are stored once a request. With ``rows == 0`` it
    is a heartbeat: only ``watermark_ms`` counts (no served row with an earlier ``ts_ms`` will follow).
    """

    spec_hash: str
    model_version: int
    map_version: int
    variant: str
    requests: int
    rows: int
    request_fields: int
    ad_fields: int
    request_dense_inputs: int
    ad_dense_inputs: int
    request_id: bytes  # (R,) u64
    ts_ms: bytes  # (R,) i64, event time of the request
    user_key: bytes  # (R,) u64
    request_ids: bytes  # (R, request_fields) u64
    request_dense: bytes  # (R, request_dense_inputs) f32
    row_request: bytes  # (B,) u32
    impression_id: bytes  # (B,) u64
    ad_ids: bytes  # (B, ad_fields) u64
    ad_dense: bytes  # (B, ad_dense_inputs) f32
    logit: bytes  # (B,) f32, raw model output
    p: bytes  # (B,) f32, calibrated
    conversion_logit: bytes  # (B,) f32, raw output of the head P(conversion | click); NaN: the model has none
    conversion_p: bytes  # (B,) f32, that probability as answered; NaN likewise
    propensity: bytes  # (B,) f32, probability that this ad was shown here under the serving policy
    watermark_ms: int = 0

    LAYOUT: ClassVar[dict[str, tuple[str, str, str]]] = {
        "request_id": ("<u8", "requests", ""),
        "ts_ms": ("<i8", "requests", ""),
        "user_key": ("<u8", "requests", ""),
        "request_ids": ("<u8", "requests", "request_fields"),
        "request_dense": ("<f4", "requests", "request_dense_inputs"),
        "row_request": ("<u4", "rows", ""),
        "impression_id": ("<u8", "rows", ""),
        "ad_ids": ("<u8", "rows", "ad_fields"),
        "ad_dense": ("<f4", "rows", "ad_dense_inputs"),
        "logit": ("<f4", "rows", ""),
        "p": ("<f4", "rows", ""),
        "conversion_logit": ("<f4", "rows", ""),
        "conversion_p": ("<f4", "rows", ""),
        "propensity": ("<f4", "rows", ""),
    }


class EventsRecord(Columns, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="record", tag="events"):
    """A batch of B public events (impressions, clicks or conversions); the topic says which.

    ``watermark_ms`` > 0 is the producer's promise that no event earlier than it will follow on this partition.
    ``position`` matters for impressions, ``value`` for conversions; zeros elsewhere.
    """

    rows: int
    impression_id: bytes
    ts_ms: bytes
    user_key: bytes
    position: bytes
    value: bytes
    watermark_ms: int = 0

    LAYOUT: ClassVar[dict[str, tuple[str, str, str]]] = {
        "impression_id": ("<u8", "rows", ""),
        "ts_ms": ("<i8", "rows", ""),
        "user_key": ("<u8", "rows", ""),
        "position": ("<i4", "rows", ""),
        "value": ("<f4", "rows", ""),
    }


class ExamplesRecord(
    Columns, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="record", tag="examples"
):
    """B examples of one partition, in the order in which the join learned of them.

    One of kind ``EXPOSURE`` for each displayed impression, one of kind ``CLICK`` for its first click, one of kind
    ``CONVERSION`` for each conversion of a click (`learners.examples.kinds`), all with the columns that were served.
    ``ts_ms`` is the display time, ``known_ms`` the event time of what the row records (display, click or conversion),
    ``delay_ms`` click time − display time, or conversion time − click time, 0 for an exposure. ``value`` is that of a
    conversion. ``conversion_logit`` and ``conversion_p`` are NaN where the model that served had no conversion head.
    ``click_produced_ms`` is the wall-clock time at which the broker received the click (0: none), the start
    of the freshness measurement. ``watermark_ms`` is the join's watermark after this record: every exposure before it
    was emitted. A record with ``rows == 0`` carries only that.
    """

    spec_hash: str
    rows: int
    fields: int
    dense_inputs: int
    kind: bytes
    impression_id: bytes
    user_key: bytes
    ts_ms: bytes
    known_ms: bytes
    delay_ms: bytes
    value: bytes
    logit: bytes
    p: bytes
    conversion_logit: bytes
    conversion_p: bytes
    propensity: bytes
    model_version: bytes
    click_produced_ms: bytes
    ids: bytes
    dense: bytes
    watermark_ms: int = 0

    LAYOUT: ClassVar[dict[str, tuple[str, str, str]]] = {
        "kind": ("u1", "rows", ""),
        "impression_id": ("<u8", "rows", ""),
        "user_key": ("<u8", "rows", ""),
        "ts_ms": ("<i8", "rows", ""),
        "known_ms": ("<i8", "rows", ""),
        "delay_ms": ("<i8", "rows", ""),
        "value": ("<f4", "rows", ""),
        "logit": ("<f4", "rows", ""),
        "p": ("<f4", "rows", ""),
        "conversion_logit": ("<f4", "rows", ""),
        "conversion_p": ("<f4", "rows", ""),
        "propensity": ("<f4", "rows", ""),
        "model_version": ("<i8", "rows", ""),
        "click_produced_ms": ("<i8", "rows", ""),
        "ids": ("<u8", "rows", "fields"),
        "dense": ("<f4", "rows", "dense_inputs"),
    }


class DeltaPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="delta"):
    """One part of a weights delta; ``payload`` is a slice of the delta's safetensors bytes.

    Applied only when parts 0..parts−1 of one version are there and ``checksum`` (xxh3-64 of the joined payload) fits.
    ``version == parent`` with an empty payload is a heartbeat: the model did not change, but the learner has seen
    everything up to ``watermark_ms``.
    """

    spec_hash: str
    version: int
    parent: int
    part: int
    parts: int
    checksum: int
    watermark_ms: int
    newest_event_ms: int
    clicks_produced_ms: bytes  # (C,) i64 wall-clock times of the clicks first learned in this version
    payload: bytes
    seal: int = 0  # of the whole record, `stream.records.seal`; 0: of a release that had none


class SnapshotNotice(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="snapshot"):
    """A snapshot of ``version`` lies whole in the store at ``url``."""

    spec_hash: str
    version: int
    url: str
    sha256: str
    watermark_ms: int
    seal: int = 0


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="calibration"):
    """One examples partition's whole calibration state; the topic is compacted by partition, states add up.

    ``state`` holds the evidence of the click's map, the delay law, the gains and the instruments
    (`calibration.head.HeadCalibration`), ``conversion_state`` the same of P(conversion | click), empty while no model
    with that head served; ``converted`` are the newest clicks that converted, u64, whose further conversions do not
    count. ``line`` is the version of the base that the model's line began with, 0 where it is not known: rows that
    another line served are no evidence for the maps.
    """

    partition: int
    version: int
    rows: int
    watermark_ms: int
    state: bytes
    next_offset: int  # the first examples offset that the state does not hold
    line: int = 0
    conversion_state: bytes = b""
    converted: bytes = b""
    seal: int = 0


class OffsetRange(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Rows of one examples partition: from (offset, row) inclusive to (offset, row) exclusive."""

    partition: int
    from_offset: int
    from_row: int
    to_offset: int
    to_row: int


class Silence(NamedTuple):
    """Displays from ``from_ms`` to ``to_ms`` (not included) to which no clicks came; 2^62: it has not ended yet."""

    from_ms: int
    to_ms: int


class ConversionDelays(msgspec.Struct, frozen=True, array_like=True):
    """Within which time a click may convert, and what is believed of the delay (log-normal) before it was measured."""

    horizon_s: float
    median_s: float
    sigma: float


class JournalRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="journal", omit_defaults=True):
    """Which rows made which version: one learn step, in order. Learning again needs nothing else beside the examples.

    ``rows`` counts those of the ranges that were kept: without faults, displayed outside of ``silences``, exposures
    drawn at ``exposure_rate``. A step that is ``skipped`` had gradients that were not finite: its version has the
    weights of the one before it. ``paid_clicks`` of those that waited paid their term of the conversion head.
    ``ahead_ms`` is the watermark of the record that brought the rows, where no click of that one waited (else 0): by it
    clicks are missed.
    """

    version: int
    rows: int
    ranges: list[OffsetRange]
    watermark_ms: int
    ahead_ms: int = 0
    exposure_rate: float = 1.0
    skipped: bool = False
    silences: list[Silence] = []
    paid_clicks: int = 0
    conversion_delays: ConversionDelays | None = None
    seal: int = 0


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="deadletter"):
    """Rejected bytes and why. ``reason`` is from a closed set, ``detail`` is for people.

    After a restart a dead letter may come again; its key, that of the rejected record, is the same.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    payload: bytes

    @classmethod
    def of(
        cls,
        topic: str,
        partition: int,
        offset: int,
        reason: str,
        detail: str,
        payload: bytes,
        *,
        record_bytes: int = 2 * _PAYLOAD_BYTES,
    ) -> Self:
        """The dead letter of a record of ``topic``, by its name in the table; what is too long is cut.

        ``record_bytes`` is what a record of the dead letters may have: half of it is for the payload.
        """
        return cls(
            topic=topic,
            partition=partition,
            offset=offset,
            reason=reason,
            detail=detail[:_DETAIL_CHARACTERS],
            payload=payload[: min(_PAYLOAD_BYTES, record_bytes // 2)],
        )

    def key(self) -> bytes:
        """The key of its record: where the rejected one stood."""
        return f"{self.topic}/{self.partition}/{self.offset}".encode()
