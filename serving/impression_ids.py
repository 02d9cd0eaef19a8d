"""Impression ids that nobody can guess, and that serving processes, and lives of one, share by chance alone."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel

_MASK: Final = 2**64 - 1
_ROUNDS: Final = 27


class ImpressionIds:
    """u64 numbers, none twice: a count, enciphered where a key is given.

    Who knows an id of somebody else could display or click it, were it not for the user (`stream.join.state.kernels`);
    so ids must not be told from one's own. The cipher is Speck64/128 (Beaulieu et al., "The SIMON and SPECK families of
    lightweight block ciphers", 2013), a bijection of 64 bits: ids of one life stay distinct. Those of several lives,
    each with a key of its own, are as if drawn: among 10**9 ids within the time that the join remembers an impression,
    0.03 are expected to come twice. 40 ns an id.

    Parameters
    ----------
    start_ms, salt : of the count's start, which they spread over all 2**64.
    key : 128 bits drawn once a process, and told to nobody. None: the ids count up, as in a backtest, whose ids nobody
        guesses and which must be reproducible.
    """

    def __init__(self, start_ms: int, salt: int, key: int | None = None) -> None:
        self._next = mix64(mix64(start_ms & _MASK) ^ (salt & _MASK))
        self._round_keys = None if key is None else round_keys(key)
        if self._round_keys is not None:
            encipher(np.zeros(1, np.uint64), self._round_keys)  # compiled or loaded before the first request comes

    def take(self, count: int) -> NDArray[np.uint64]:
        """(count,) uint64 ids never given before by this object, none of them 0 (0 means missing on the wire)."""
        ids = self._count(count)
        if self._round_keys is None:
            return ids
        encipher(ids, self._round_keys)
        while not ids.all():  # the one number that is enciphered as 0 is left out
            ids = np.concatenate((ids[ids != 0], self.take(1)))
        return ids

    def _count(self, count: int) -> NDArray[np.uint64]:
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


def round_keys(key: int) -> NDArray[np.uint32]:
    """(27,) the round keys of a key of 128 bits, whose lowest 32 bits are the first of them."""
    words = [key >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)]
    low, others = words[0], words[1:]
    keys = []
    for at in range(_ROUNDS):
        keys.append(low)
        word = (_rotated(others[at % 3], 24) + low & 0xFFFFFFFF) ^ at
        others[at % 3] = word
        low = _rotated(low, 3) ^ word
    return np.array(keys, np.uint32)


def _rotated(word: int, left: int) -> int:
    return (word << left | word >> 32 - left) & 0xFFFFFFFF


@kernel
def encipher(numbers: NDArray[np.uint64], keys: NDArray[np.uint32]) -> None:
    """Encipher numbers in place, (B,): the high 32 bits are the first word of Speck's block."""
    for i in range(len(numbers)):
        x, y = np.uint32(numbers[i] >> np.uint64(32)), np.uint32(numbers[i] & np.uint64(0xFFFFFFFF))
        for key in keys:
            x = np.uint32(np.uint32(x >> np.uint32(8) | x << np.uint32(24)) + y) ^ key
            y = np.uint32(y << np.uint32(3) | y >> np.uint32(29)) ^ x
        numbers[i] = np.uint64(x) << np.uint64(32) | np.uint64(y)
