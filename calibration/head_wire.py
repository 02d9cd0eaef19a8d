"""Bytes of a head's calibration state."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.config import CalibratorConfig
from calibration.curve import CalibrationMap
from calibration.distrust import check_counts, check_finite, check_times, inflated
from calibration.slice_map import SliceMap
from calibration.slices import SlicePlan

MOST_LOG_ODDS: Final = 100.0
"""Beyond what any map adds or any knot lies at: a probability has no bits left at 25."""
_DTYPES: Final = ("<i8", "<f8", "<f4", "|u1", "|b1")
_MAGIC: Final = b"MSCH"
_FORMAT: Final = 1
_HEADER: Final = struct.Struct("<4sII")  # magic, format, CRC-32 of the rest


class ArrayContent(msgspec.Struct, frozen=True, array_like=True):
    """An array of any shape, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: NDArray[Any]) -> Self:
        """Of an array."""
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
        return cls(little.dtype.str, little.shape, little.tobytes())

    def array(self) -> NDArray[Any]:
        """A copy."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"an array of a calibration state is of {self.dtype[:20]!r}, not of {_DTYPES}: drop it.")
        return np.frombuffer(self.data, self.dtype).reshape(self.shape).copy()


class TrialContent(msgspec.Struct, frozen=True, array_like=True):
    """A candidate map and the displays that it is judged on."""

    from_ms: int
    until_ms: int
    shift: float
    arrays: tuple[ArrayContent, ArrayContent, ArrayContent, ArrayContent]  # curve's logits, log-odds; nodes, offsets

    @classmethod
    def of(cls, from_ms: int, until_ms: int, candidate: SliceMap) -> Self:
        """Of a trial's parts."""
        curve = candidate.curve
        a, b, c, d = map(ArrayContent.of, (curve.logits, curve.log_odds, candidate.nodes, candidate.offsets))
        return cls(from_ms, until_ms, candidate.shift, (a, b, c, d))

    def candidate(self, plan: SlicePlan) -> SliceMap:
        """The candidate."""
        logits, log_odds, nodes, offsets = (one.array() for one in self.arrays)
        if nodes.ndim != 1 or offsets.shape != nodes.shape or nodes.dtype != np.int64:
            raise ValueError(f"a map has nodes {nodes.shape} and offsets {offsets.shape}: one each. Drop it.")
        for name, numbers in (("knots", log_odds), ("offsets", offsets), ("shift", self.shift)):
            check_finite(name, numbers, MOST_LOG_ODDS)
        check_times("a trial", np.array([self.from_ms, self.until_ms]))
        return SliceMap(plan, CalibrationMap(logits, log_odds), nodes, offsets, self.shift)


class HeadContent(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `HeadCalibration`."""

    plan: int  # its fingerprint
    config: CalibratorConfig
    exposures: int
    events: int
    fitted_at_events: int
    law: dict[str, ArrayContent]
    evidence: bytes
    instruments: bytes
    gains: bytes
    trials: list[TrialContent]
    first_ms: int
    ahead: ArrayContent


def to_wire(content: HeadContent) -> bytes:
    """Header (magic, format, CRC-32), then compressed msgpack."""
    packed = zlib.compress(msgspec.msgpack.encode(content), 1)
    return _HEADER.pack(_MAGIC, _FORMAT, zlib.crc32(packed)) + packed


def from_wire(data: bytes) -> HeadContent:
    """Read what `to_wire` wrote; ValueError when it is something else, cut short or damaged."""
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ValueError(
            f"calibration state of {len(data)} bytes starts with {data[:4]!r}, expected {_MAGIC!r}: it was written "
            "by something else, or by a release whose examples waited for labels; drop it."
        )
    _, fmt, crc = _HEADER.unpack_from(data)
    packed = data[_HEADER.size :]
    if fmt != _FORMAT or zlib.crc32(packed) != crc:
        raise ValueError(
            f"calibration state of format {fmt} has CRC {zlib.crc32(packed):08x}, expected format {_FORMAT} and "
            f"CRC {crc:08x}: it was damaged; drop it."
        )
    content = msgspec.msgpack.decode(inflated(packed), type=HeadContent)
    check_counts("exposures and events", np.array([content.exposures, content.events, content.fitted_at_events]))
    check_times("first_ms", content.first_ms)
    return content
