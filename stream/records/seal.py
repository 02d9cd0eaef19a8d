"""The seal of a record of the stream's own topics: one checksum over all of it, its last field.

A record of before has none, ``seal == 0``: such a one is still read, by its values alone.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec
import xxhash

from stream.records.columns import RecordError

_BYTES = 8
_TOP = 1 << 63  # so that msgpack always takes eight bytes for it, the last ones of the record
_encode = msgspec.msgpack.Encoder().encode


class _Sealable(Protocol):
    seal: int


_Record = TypeVar("_Record", bound=_Sealable)


def sealed(record: msgspec.Struct) -> bytes:
    """Return the msgpack of a record whose last field is ``seal``, with the checksum of all bytes before it."""
    encoded = _encode(msgspec.structs.replace(record, seal=_TOP))
    return encoded[:-_BYTES] + _seal(encoded).to_bytes(_BYTES, "big")


def checked(record: _Record, value: bytes) -> _Record:
    """Return the record that ``value`` was decoded to. Raises RecordError (``malformed``) for one that was altered."""
    if (record.seal or _ends_like_sealed(value)) and record.seal != (found := _seal(value)):
        raise RecordError(
            "malformed",
            f"its {len(value)} bytes have checksum {found:016x}, its seal says {record.seal:016x}: it was altered "
            "after it was written",
        )
    return record


def _ends_like_sealed(value: bytes) -> bool:
    """Whether a name of four letters and eight bytes end it: a seal whose name was altered is not read as none."""
    name_at, number_at = len(value) - _BYTES - 6, len(value) - _BYTES - 1
    return name_at > 0 and value[name_at] == 0xA4 and value[number_at] == 0xCF and value[number_at + 1] >= 0x80


def _seal(encoded: bytes) -> int:
    return xxhash.xxh3_64_intdigest(memoryview(encoded)[:-_BYTES]) | _TOP
