"""The seal of a record of the stream's own topics: one checksum over all of it, its last field.

A record of before has none, ``seal == 0``: such a one is still read, by its values alone.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec
import xxhash

from stream.records.columns import RecordError

_BYTES = 8
_NAME, _UINT64 = b"\xa4seal", 0xCF  # as msgpack has them
_ALIKE = 2  # of the name's bytes: one record in a million without a seal ends so by chance
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
    """Whether a name like that of the seal and eight bytes end it: one whose name was altered is not read as none.

    Any of the name's bytes may be the altered one: with another length it swallows what follows.
    """
    number_at = len(value) - _BYTES - 1
    name = value[number_at - len(_NAME) : number_at] if number_at > len(_NAME) else b""
    alike = sum(found == wanted for found, wanted in zip(name, _NAME, strict=False))
    return alike >= _ALIKE and value[number_at] == _UINT64


def _seal(encoded: bytes) -> int:
    return xxhash.xxh3_64_intdigest(memoryview(encoded)[:-_BYTES]) | _TOP
