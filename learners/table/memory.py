"""Memory for large arrays that grow without being copied, and for small ones that vectorised sums read."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HEAD_BYTES = 16  # of a row: key 8, last seen 4, column and flags 4
_ROW_NUMBERS = (1 << 31) - (1 << 17)  # rows are numbered by 32 bits
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named by Python 3.13; the value is Linux's


def physical_bytes() -> int:
    """Memory of this machine: no array can ever use more."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def reserved(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros that costs address space only, until its pages are written.

    Large pages are asked for: a random look-up then rarely misses the address cache as well as the data cache.

    Raises
    ------
    MemoryError
        The system refuses the address space.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)  # mmap refuses 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    try:
        pages = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise MemoryError(
            f"{size} bytes of address space for an array {shape} were refused ({error}): the table could not grow. "
            "Set max_rows, or raise the process's limit (ulimit -v)."
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages: slower, not wrong
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)


def aligned(shape: tuple[int, int]) -> NDArray[np.float32]:
    """An uninitialised array whose memory starts at a multiple of 64 bytes, where vectorised sums start evenly."""
    size = shape[0] * shape[1]
    memory = np.empty(size + 16, np.float32)
    offset = -memory.ctypes.data % 64 // 4
    return memory[offset : offset + size].reshape(shape)


def most_rows(dim: int, columns: int, max_rows: int | None) -> int:
    """Rows of address space for an embedding table: what max_rows allows, or what would fill the machine."""
    bounded = physical_bytes() // (4 * (dim + 3) + _HEAD_BYTES)
    if max_rows is not None:
        bounded = min(bounded, 2 * max_rows)  # a reader may assign before it removes
    return min(bounded, _ROW_NUMBERS) + 1 + columns
