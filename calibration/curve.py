"""The calibration map: raw logit -> calibrated probability, strictly increasing."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MAGIC: Final = b"MSCM"
_FORMAT: Final = 1
_HEADER: Final = struct.Struct("<4sHxxIqI")  # magic, format, knots, version, CRC-32 of the knots


@dataclass(frozen=True, eq=False)
class CalibrationMap:
    """A strictly increasing piecewise linear curve in log-odds; beyond its end knots it goes on with slope 1.

    logits : (K,) float64, raw log-odds of the knots, strictly increasing, finite, K >= 1.
    log_odds : (K,) float64, calibrated log-odds at the knots, strictly increasing, finite.
    version : counts the maps of one calibrator; 0 is the identity it starts with.

    Raises ValueError when the knots do not rise: the map would reorder the ads.
    """

    logits: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    version: int = 0

    def __post_init__(self) -> None:
        for name in ("logits", "log_odds"):
            knots = np.array(getattr(self, name), dtype=np.float64)
            knots.flags.writeable = False
            object.__setattr__(self, name, knots)
            rises = knots.ndim == 1 and bool((np.diff(knots) > 0).all())
            if not rises or len(knots) == 0 or not np.isfinite(knots).all():
                raise ValueError(
                    f"{name} of a calibration map {knots.shape} must be one or more finite, strictly "
                    "increasing numbers: another curve would reorder the ads. Fit the map again."
                )
        if self.logits.shape != self.log_odds.shape:
            raise ValueError(
                f"a calibration map has {len(self.logits)} logits and {len(self.log_odds)} log_odds: "
                "each knot needs both. Fit the map again."
            )

    @classmethod
    def identity(cls, version: int = 0) -> CalibrationMap:
        """The map that leaves sigmoid(logit) as it is."""
        return cls(logits=np.zeros(1), log_odds=np.zeros(1), version=version)

    def log_odds_of(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(B,) raw logits -> (B,) calibrated log-odds, float64: logits 1e-9 apart keep their order.

        Infinite logits stay infinite and NaN stays NaN: the caller decides what to do with a diverged score.
        """
        x = np.asarray(logits, dtype=np.float64)
        inside = np.interp(x, self.logits, self.log_odds)
        below = np.minimum(x - self.logits[0], 0.0)
        above = np.maximum(x - self.logits[-1], 0.0)
        return np.asarray(inside + below + above)

    def apply(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(B,) raw logits -> (B,) calibrated probabilities, float32.

        The order of the logits is kept; where float32 cannot tell two probabilities apart, `log_odds_of` can.
        """
        with np.errstate(over="ignore"):  # exp(+large) is inf, and 1 / inf is the right 0
            return (1.0 / (1.0 + np.exp(-self.log_odds_of(logits)))).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Little-endian: header (magic, format, knots, version, CRC-32), then logits, then log_odds."""
        knots = self.logits.astype("<f8").tobytes() + self.log_odds.astype("<f8").tobytes()
        return _HEADER.pack(_MAGIC, _FORMAT, len(self.logits), self.version, zlib.crc32(knots)) + knots

    @classmethod
    def from_bytes(cls, data: bytes) -> CalibrationMap:
        """Read what `to_bytes` wrote; ValueError when it is something else, cut short or damaged."""
        if len(data) < _HEADER.size:
            raise ValueError(
                f"calibration map of {len(data)} bytes is shorter than its {_HEADER.size}-byte header: fetch it again."
            )
        magic, fmt, count, version, crc = _HEADER.unpack_from(data)
        if magic != _MAGIC or fmt != _FORMAT:
            raise ValueError(
                f"calibration map starts with {magic!r} format {fmt}, expected {_MAGIC!r} format {_FORMAT}: "
                "it is not a map of this release; fit it again."
            )
        knots = data[_HEADER.size :]
        if len(knots) != 16 * count or zlib.crc32(knots) != crc:
            raise ValueError(
                f"calibration map of {len(knots)} bytes of knots ({16 * count} expected) has CRC "
                f"{zlib.crc32(knots):08x} ({crc:08x} expected): it was cut or damaged; fetch it again."
            )
        both = np.frombuffer(knots, dtype="<f8")
        return cls(logits=both[:count], log_odds=both[count:], version=version)
