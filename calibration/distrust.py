"""What a state from the wire may hold: bytes that inflate to no more than is sound, numbers that can be right."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.bins import BIN_LIMIT

LATEST_MS: Final = 4_102_444_800_000  # 2100-01-01
MOST_BYTES: Final = 256 << 20
"""What one state may inflate to; the largest of a day have some megabytes."""
_UNREADABLE = (
    msgspec.MsgspecError, zlib.error, struct.error, UnicodeDecodeError,
    TypeError, KeyError, IndexError, OverflowError, RecursionError, MemoryError, ArithmeticError,
)  # fmt: skip


@contextmanager
def unreadable_is_a_value_error(what: str) -> Iterator[None]:
    """Whatever a damaged or hostile state makes its decoder raise becomes a ValueError that says so."""
    try:
        yield
    except _UNREADABLE as error:
        raise ValueError(
            f"{what} cannot be read ({type(error).__name__}: {error}): it was damaged or written by something else; "
            "drop it."
        ) from error


def inflated(packed: bytes, most: int = MOST_BYTES) -> bytes:
    """Return the bytes that were compressed. Raises ValueError when they are more than ``most``, zlib.error."""
    inflater = zlib.decompressobj()
    data = inflater.decompress(packed, most)
    if inflater.unconsumed_tail or not inflater.eof:
        raise ValueError(f"{len(packed)} compressed bytes hold more than {most} or were cut: drop the state.")
    return data


def check_counts(name: str, counts: NDArray[np.int64]) -> None:
    """Raise ValueError unless all are counts whose sum cannot wrap an int64."""
    if not counts.size:
        return
    if int(counts.min()) < 0 or float(counts.sum(dtype=np.float64)) >= BIN_LIMIT:
        raise ValueError(
            f"{name} of a calibration state go from {counts.min()} to {counts.max()}: counts are not negative, and "
            f"their sum stays below {BIN_LIMIT}. Drop the state."
        )


def check_times(name: str, times_ms: NDArray[np.int64] | int) -> None:
    """Raise ValueError for a time before 1970 or from 2100 on."""
    times_ms = np.asarray(times_ms)
    if times_ms.size and not 0 <= int(times_ms.min()) <= int(times_ms.max()) < LATEST_MS:
        raise ValueError(
            f"{name} of a calibration state go from {times_ms.min()} to {times_ms.max()}, not from 0 to {LATEST_MS} "
            "(2100) in Unix milliseconds: cohorts would be of no time. Drop the state."
        )


def check_finite(name: str, numbers: NDArray[Any] | float, most: float) -> None:
    """Raise ValueError unless all are finite and at most ``most`` away from 0."""
    numbers = np.asarray(numbers)
    if numbers.size and not bool((np.abs(numbers) <= most).all()):  # false for NaN
        raise ValueError(
            f"{name} of a calibration state hold a number that is not finite or beyond +-{most:g}: no map has it. "
            "Drop the state."
        )


def check_delays(counts: NDArray[np.int64], waiting: NDArray[np.int64], now_ms: int) -> None:
    """Raise ValueError unless a delay law could hold these: (2, bins) in and within each bin, rows (bin, …) to come."""
    for name, numbers in (("counts", counts), ("waiting events", waiting)):
        check_counts(f"{name} of a delay law", numbers)
    if (counts[0] > counts[1]).any() or (len(waiting) and int(waiting[:, 0].max()) >= counts.shape[1]):
        raise ValueError("a delay law counts more in a bin than within it, or events of no bin: drop it.")
    check_times("the delay law's clock", now_ms)
