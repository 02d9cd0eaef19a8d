"""Decompression that stops at a bound: a megabyte of zstd can hold gigabytes."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator

import cramjam
import numpy as np

MAX_INFLATED_BYTES = 64 << 20  # 8 times the greatest record in the table of topics
_JAVA_SNAPPY_HEADER = b"\x82SNAPPY\0" + struct.pack("!ii", 1, 1)  # blocks follow, each with its length


class InflateError(ValueError):
    """A compressed batch is broken or inflates beyond the bound."""

    def __init__(self, codec: str, size: int, why: object) -> None:
        super().__init__(f"{size} bytes of {codec} do not inflate to at most {MAX_INFLATED_BYTES} bytes ({why})")


def inflate_gzip(payload: bytes) -> bytes:
    """Return what was compressed. Raises InflateError."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(payload)) as stream:
            inflated = stream.read(MAX_INFLATED_BYTES + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InflateError("gzip", len(payload), error) from error
    if len(inflated) > MAX_INFLATED_BYTES:
        raise InflateError("gzip", len(payload), "there is more")
    return inflated


def inflate_snappy(payload: bytes) -> bytes:
    """Return what was compressed, in one raw block or in the frames of Java clients. Raises InflateError."""
    try:
        blocks = list(_xerial_blocks(payload)) if payload.startswith(_JAVA_SNAPPY_HEADER) else [payload]
        total = sum(cramjam.snappy.decompress_raw_len(block) for block in blocks)  # as their headers promise
        if total > MAX_INFLATED_BYTES:
            raise InflateError("snappy", len(payload), f"its headers promise {total}")
        return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
    except (cramjam.DecompressionError, struct.error) as error:
        raise InflateError("snappy", len(payload), error) from error


def _xerial_blocks(payload: bytes) -> Iterator[bytes]:
    at = len(_JAVA_SNAPPY_HEADER)
    while at < len(payload):
        (size,) = struct.unpack_from("!I", payload, at)
        yield payload[at + 4 : at + 4 + size]
        at += 4 + size


def inflate_lz4(payload: bytes) -> bytes:
    """Return what was compressed. Raises InflateError."""
    return _into_bounded("lz4", cramjam.lz4.decompress_into, payload)


def inflate_zstd(payload: bytes) -> bytes:
    """Return what was compressed. Raises InflateError."""
    return _into_bounded("zstd", cramjam.zstd.decompress_into, payload)


def _into_bounded(codec: str, decompress_into: Callable[..., int], payload: bytes) -> bytes:
    room = np.empty(MAX_INFLATED_BYTES, np.uint8)  # costs memory only where it is written to
    try:
        return room[: decompress_into(payload, room)].tobytes()
    except cramjam.DecompressionError as error:
        raise InflateError(codec, len(payload), error) from error
