"""Relatives of valid inputs: bits flipped, pieces cut, moved or repeated, lengths that lie, values at their bounds.

Every choice is drawn from a `random.Random`; that of hypothesis makes them shrink to the smallest that still fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

INTEGERS = (
    0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 10**11, 10**12,
    946_684_799_999, 946_684_800_000, 4_102_444_799_999, 4_102_444_800_000, 4_294_967_296_000, 2**61, 2**62 - 1, 2**62,
    2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**62), -(2**63),
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1.0000001, 1e-45, 1e-308, 88.8, 1e4, 1e15, 1e30, 3.4028234e38, -3.4e38, 1e39, 1e308,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = ("", "0", "-1", "nan", "\x00", "\u202e", "é" * 40, "a" * 300, "../../etc/passwd", "𝔊", "None", "1e999")
_STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    1.5,
    float("nan"),
    "",
    "x",
    b"",
    b"\0" * 9,
    [],
    [[]],
    {},
    {"a": 1},
)
_ITEMS = ("<u1", "<i4", "<f4", "<i8", "<u8", "<f8")
_NOTHING = b"\0"


def damaged(value: bytes, source: Random, other: bytes = b"") -> bytes:
    """The bytes with one to three faults; ``other`` is what pieces of may be spliced in."""
    for _ in range(source.randint(1, 3)):
        value = source.choice(_DAMAGES)(value or _NOTHING, source, other or value)
    return value


def _flipped(value: bytes, source: Random, _: bytes) -> bytes:
    at = source.randrange(len(value))
    return value[:at] + bytes([value[at] ^ (1 << source.randrange(8))]) + value[at + 1 :]


def _byte(value: bytes, source: Random, _: bytes) -> bytes:
    at = source.randrange(len(value))
    return value[:at] + bytes([source.choice((0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xFF, 0x22, 0x5B, 0x7B))]) + value[at + 1 :]


def _cut(value: bytes, source: Random, _: bytes) -> bytes:
    return value[: source.randrange(len(value))]


def _left_out(value: bytes, source: Random, _: bytes) -> bytes:
    at = source.randrange(len(value))
    return value[:at] + value[at + source.randint(1, 16) :]


def _repeated(value: bytes, source: Random, _: bytes) -> bytes:
    at, size = source.randrange(len(value)), source.randint(1, 64)
    return value[: at + size] + value[at:]


def _spliced(value: bytes, source: Random, other: bytes) -> bytes:
    return value[: source.randrange(len(value))] + (other or _NOTHING)[source.randrange(max(1, len(other))) :]


def _number(value: bytes, source: Random, _: bytes) -> bytes:
    dtype = np.dtype(source.choice(("<u4", ">u4", "<u8", ">u8", ">u2", "<f4", "<f8")))
    number, at = _bound(dtype, source), source.randrange(len(value))
    return value[:at] + number + value[at + len(number) :]


def _longer(value: bytes, source: Random, _: bytes) -> bytes:
    return value + source.choice((b"\0", b"\xff" * 8, b" ", b"}", value[:64]))


_DAMAGES: Sequence[Callable[[bytes, Random, bytes], bytes]] = (
    _flipped, _flipped, _byte, _cut, _left_out, _repeated, _spliced, _number, _longer,
)  # fmt: skip


def changed(value: Any, source: Random) -> Any:
    """Plain data (of msgpack or JSON) with one change somewhere in it, of type, value, length or name."""
    if source.randrange(16) == 0:
        return source.choice(_STRANGE)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return source.choice((value + 1, value - 1, -value, *INTEGERS))
    if isinstance(value, float):
        return source.choice((-value, value * 2, *FLOATS))
    if isinstance(value, bytes):
        return column(value, source)
    if isinstance(value, str):
        return source.choice((value + "0", value[:-1], value * 2, value.upper(), *TEXTS))
    if isinstance(value, list):
        return _list_changed(value, source)
    if isinstance(value, dict):
        return _dict_changed(value, source)
    return source.choice(_STRANGE)


def _list_changed(value: list[Any], source: Random) -> list[Any]:
    how = source.randrange(8) if value else 0
    if how == 0:
        return [*value, *(value[-1:] or [source.choice(_STRANGE)])]
    at = source.randrange(len(value))
    if how == 1:
        return value[:at] + value[at + 1 :]
    if how == 2:
        return value[at:] + value[:at]
    return [*value[:at], changed(value[at], source), *value[at + 1 :]]


def _dict_changed(value: Mapping[Any, Any], source: Random) -> dict[Any, Any]:
    made = dict(value)
    how = source.randrange(16) if made else 0
    if how == 0:
        return made | {source.choice(TEXTS): source.choice(_STRANGE)}
    name = source.choice(sorted(made, key=str))
    if how == 1:
        del made[name]
    elif how == 2:
        made[f"{name}x"] = made.pop(name)
    else:
        made[name] = changed(made[name], source)
    return made


def column(value: bytes, source: Random) -> bytes:
    """A column of numbers with one of them at a bound, or another length."""
    how = source.randrange(8)
    if not value or how == 0:
        return value + bytes(source.choice((1, 4, 8)))
    if how == 1:
        return value[: -source.choice((1, 4, 8))]
    if how == 2:
        return damaged(value, source)
    dtype = np.dtype(source.choice(_ITEMS))
    count = len(value) // dtype.itemsize
    if not count:
        return b""
    at = source.randrange(count) * dtype.itemsize
    return value[:at] + _bound(dtype, source) + value[at + dtype.itemsize :]


def _bound(dtype: np.dtype[Any], source: Random) -> bytes:
    if dtype.kind == "f":
        with np.errstate(all="ignore"):
            return bytes(np.array([source.choice(FLOATS)], np.float64).astype(dtype).tobytes())
    number = source.choice(INTEGERS) % (1 << 8 * dtype.itemsize)
    return number.to_bytes(dtype.itemsize, "big" if dtype.byteorder == ">" else "little")


def arrays_changed(arrays: Mapping[str, NDArray[Any]], source: Random) -> dict[str, NDArray[Any]]:
    """Named arrays with one of them other in values, type, shape or name."""
    made = dict(arrays)
    name = source.choice(sorted(made))
    array, how = made[name], source.randrange(12)
    if how == 0:
        del made[name]
    elif how == 1:
        made[source.choice(("", "keys", "dense.x", f"{name}x"))] = made.pop(name)
    elif how == 2:
        with np.errstate(all="ignore"):
            made[name] = array.astype(source.choice(("i1", "i4", "i8", "u8", "f2", "f4", "f8", "?")), copy=True)
    elif how == 3:
        made[name] = array.reshape(source.choice(((-1,), (1, -1), (-1, 1), (1, 1, -1))))
    elif how == 4:
        made[name] = array[: source.randrange(max(1, len(array)))] if array.ndim else array.reshape(1)
    elif array.size:
        flat = np.array(array).reshape(-1)
        at = source.randrange(flat.size) * flat.dtype.itemsize
        raw = flat.tobytes()
        raw = raw[:at] + _bound(flat.dtype, source) + raw[at + flat.dtype.itemsize :]
        made[name] = np.frombuffer(raw, flat.dtype).reshape(array.shape)
    return made


def msgpack_changed(value: bytes, source: Random) -> bytes:
    """A msgpack record with one to three changes."""
    raw = msgspec.msgpack.decode(value)
    for _ in range(source.randint(1, 3)):
        raw = changed(raw, source)
    return packed(raw)


def packed(raw: Any) -> bytes:
    """Plain data as msgpack; what no msgpack holds is cut to what one does."""
    return msgspec.msgpack.encode(_cut_to_64_bits(raw))


def sealed_again(raw: Any) -> bytes:
    """Plain data as msgpack with the right seal of all of it, where it is a record."""
    if not isinstance(raw, dict):
        return packed(raw)
    top = 1 << 63
    value = packed({**{name: one for name, one in raw.items() if name != "seal"}, "seal": top})
    return value[:-8] + (xxhash.xxh3_64_intdigest(value[:-8]) | top).to_bytes(8, "big")


def _cut_to_64_bits(raw: Any) -> Any:
    if isinstance(raw, bool) or not isinstance(raw, (int, list, dict)):
        return raw
    if isinstance(raw, int):
        return raw if -(2**63) <= raw < 2**64 else raw % 2**64
    if isinstance(raw, list):
        return [_cut_to_64_bits(one) for one in raw]
    return {_cut_to_64_bits(name): _cut_to_64_bits(one) for name, one in raw.items()}


def json_changed(value: bytes, source: Random) -> bytes:
    """A JSON text with one to three changes, some as of a sloppy writer: NaN, 400 digits, a field twice."""
    raw = json.loads(value)
    for _ in range(source.randint(1, 3)):
        raw = changed(raw, source)
    text = json.dumps(raw, default=lambda one: one.decode("latin-1"), ensure_ascii=source.randrange(2) == 0)
    how = source.randrange(12)
    if how == 0:
        text = text.replace(": 1", f": {source.choice(('1' + '0' * 400, '1e400', '-0', '01', '1.', '0x1'))}", 1)
    elif how == 1:
        text = text.replace("{", '{"ts_ms": 1, "ts_ms": 2, ', 1)
    elif how == 2:
        text = text.replace('"', source.choice(('"\\ud800', '"\\u0000', "'", '"\\')), 1)
    elif how == 3:
        text = text.replace("{", source.choice(("[", "{" * 50, '{"a": ' + "[" * 3_000)), 1)
    return text.encode("utf-8", "surrogatepass")
