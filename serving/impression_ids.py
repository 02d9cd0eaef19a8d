"""Impression ids that no two serving processes, and no two lives of one, share."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_MASK: Final = 2**64 - 1


class ImpressionIds:
    """Consecutive u64 numbers from a start that start time and salt spread over all 2**64.

    Two lives collide only where their runs of ids overlap: a thousand lives of 10**9 ids each within the time that the
    join remembers an impression do so with a probability of 5e-5. Consecutive ids also cost nothing to make.

    Parameters
    ----------
    start_ms : wall-clock time at which the process started.
    salt : 64 random bits drawn once a process; a fixed one makes the ids reproducible.
    """

    def __init__(self, start_ms: int, salt: int) -> None:
        self._next = mix64(mix64(start_ms & _MASK) ^ (salt & _MASK))

    def take(self, count: int) -> NDArray[np.uint64]:
        """(count,) uint64 ids never given before by this object, none of them 0 (0 means missing on the wire)."""
        first = self._next
        if first == 0 or first + count > _MASK:  # the run would touch 0: leave out what is left before it
            first = 1
        self._next = first + count
        return np.arange(first, first + count, dtype=np.uint64)


def mix64(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64 bits that spreads every bit."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
