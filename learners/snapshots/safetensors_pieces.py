"""Arrays as safetensors, piece by piece: a thread can write gigabytes without holding the interpreter.

``safetensors.numpy.save`` joins everything to one ``bytes`` under the interpreter's lock: 0.2 s for 150 MB, in which no
other thread runs. The pieces here are views of the arrays; hashing and writing them releases the lock.
``save_file`` in a thread does not hold it either (pauses of 5 ms at two million rows, as here), but it writes to a path
alone: neither behind a URL nor hashed on the way.
The format (github.com/huggingface/safetensors): length of the header as 8 little-endian bytes, a JSON header, the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 8 << 20

_NAMES = {
    np.dtype(code): name
    for code, name in {
        "?": "BOOL", "i1": "I8", "u1": "U8", "<i2": "I16", "<u2": "U16", "<i4": "I32", "<u4": "U32",
        "<i8": "I64", "<u8": "U64", "<f2": "F16", "<f4": "F32", "<f8": "F64",
    }.items()
}  # fmt: skip
_ALIGNMENT = 8


def pieces_of(arrays: Mapping[str, NDArray[Any]]) -> Iterator[memoryview]:
    """The file's content in pieces of at most ``PIECE_BYTES`` (the header is one), in order.

    The arrays must not change meanwhile. Raises ValueError for a dtype that the format lacks.
    """
    # Wide items first, so that every array starts at a multiple of its item size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    yield memoryview(_header_of(dict(ordered)))
    for _, array in ordered:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]


def _header_of(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    described: dict[str, dict[str, Any]] = {}
    at = 0
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise ValueError(
                f"array {name} is of {array.dtype}, safetensors holds {', '.join(_NAMES.values())}: it could not be "
                "read back. Convert it."
            )
        described[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = msgspec.json.encode(described)
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
