"""Which partition a user lives on: Kafka's default rule, vectorised, so that any client's partitioner agrees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SEED = np.uint32(0x9747B28C)
_M = np.uint32(0x5BD1E995)
_U64_DIGITS = 20


def key_bytes(user_key: int) -> bytes:
    """Return the Kafka key of a user's records: the decimal digits of the user key."""
    return b"%d" % user_key


def partition_of(user_keys: NDArray[np.uint64], partitions: int) -> NDArray[np.int32]:
    """Return the partition of each user's records.

    The partition is murmur2 of the Kafka key, `key_bytes(user_key)`, as the Java client and aiokafka compute it
    (``org.apache.kafka.common.utils.Utils.murmur2``), its sign bit cleared, modulo the number of partitions.

    Parameters
    ----------
    user_keys : (B,) u64
    partitions : number of partitions of the input topics

    Returns
    -------
    (B,) i32, each in [0, partitions)
    """
    if partitions < 1:
        raise ValueError(
            f"partitions={partitions} must be at least 1: no record could be stored. Set MILLSTREAM_PARTITIONS."
        )
    keys = np.ascontiguousarray(user_keys, dtype=np.uint64)
    digits = keys.astype(f"S{_U64_DIGITS}")
    text = digits.view(np.uint8).reshape(len(keys), _U64_DIGITS)
    length = np.char.str_len(digits).astype(np.int64)
    hashed = _murmur2(text, length)
    return ((hashed & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)).astype(np.int32)


def _murmur2(text: NDArray[np.uint8], length: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return murmur2 of each row's first `length` bytes; `text` (B, width) is zero padded, width a multiple of 4.

    Zero padding makes the tail simple: the 1 to 3 bytes left are a word whose missing bytes are zero.
    """
    words = text.view("<u4")
    rows = np.arange(len(text))
    h = _SEED ^ length.astype(np.uint32)
    whole = length // 4
    for at in range(text.shape[1] // 4):
        k = words[:, at] * _M
        k = (k ^ (k >> np.uint32(24))) * _M
        h = np.where(at < whole, (h * _M) ^ k, h)
    tail = words[rows, np.minimum(whole, words.shape[1] - 1)]
    h = np.where(length % 4 > 0, (h ^ tail) * _M, h)
    h = (h ^ (h >> np.uint32(13))) * _M
    result: NDArray[np.uint32] = h ^ (h >> np.uint32(15))
    return result
