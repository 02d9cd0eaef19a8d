"""What a fetch of compressed batches may become in memory; where a batch is too much, a record in its place says so.

A broker bounds the bytes that it stores (max.message.bytes), not what they inflate to, and aiokafka knows no bound: the
process would be out of memory before it saw a record. Nor may the decoder's error reach aiokafka: it would be raised
at every fetch again, after the sound records before it were dropped, and the partition would stand still for ever. So
such a batch is passed over like a transaction's marker, and a record in its place goes the way of unreadable ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import structlog

from stream.kafka.aiokafka_internals import record_in_place_of, replace_decoders, wrap_batches
from stream.kafka.inflate import (
    MAX_INFLATED_BYTES,
    InflateError,
    inflate_gzip,
    inflate_lz4,
    inflate_snappy,
    inflate_zstd,
)
from stream.records.limits import unreadable

_DECODERS = {
    "gzip_decode": inflate_gzip,
    "snappy_decode": inflate_snappy,
    "lz4_decode": inflate_lz4,
    "zstd_decode": inflate_zstd,
}

_log = structlog.get_logger(__name__)


def bound_fetches() -> None:
    """Make every aiokafka consumer of this process read compressed batches in this way; once is enough."""
    if _Meter.is_installed:
        return
    replace_decoders({name: _metered(decoder) for name, decoder in _DECODERS.items()})
    wrap_batches(_Batches)
    _Meter.is_installed = True


class _Meter:
    """How much was inflated so far; other threads' shares only cut a fetch sooner."""

    inflated_bytes = 0
    is_installed = False


def _metered(decoder: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def decode(payload: bytes) -> bytes:
        inflated = decoder(payload)
        _Meter.inflated_bytes += len(inflated)
        return inflated

    return decode


class _Batches:
    """The batches of one fetch, as aiokafka asks for them; what is beyond the bound is left to the next fetch."""

    def __init__(self, tp: Any, batches: Any) -> None:
        self._tp = tp
        self._batches = batches
        self._inflated_before: int | None = None

    def has_next(self) -> bool:
        if self._inflated_before is None:
            self._inflated_before = _Meter.inflated_bytes
        elif _Meter.inflated_bytes - self._inflated_before >= MAX_INFLATED_BYTES:
            return False
        return bool(self._batches.has_next())

    @property
    def leader_epoch(self) -> int:
        return int(self._batches.leader_epoch)

    def next_batch(self) -> Any:
        batch = self._batches.next_batch()
        compressed = getattr(batch, "compression_type", 0)  # the formats before Kafka 0.11 do not say
        return _Batch(self._tp, batch) if compressed else batch


class _Batch:
    """A compressed batch, or the record in its place."""

    def __init__(self, tp: Any, batch: Any) -> None:
        self._tp = tp
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        batch = self._batch
        try:
            return iter(batch)  # inflates it
        except InflateError as error:
            offsets = f"offsets {batch.base_offset} to {batch.next_offset - 1}"
            reason = f"{offsets} cannot be unpacked and are lost to this reader: {error}"
        topic, partition = self._tp.topic, self._tp.partition
        _log.error("a batch was passed over", topic=topic, partition=partition, reason=reason)
        return iter([record_in_place_of(batch, unreadable(reason))])
