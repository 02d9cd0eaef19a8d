"""Memory for large arrays: some grow without being copied, others are used again without being taken afresh."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from learners.pages import touch

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named by Python 3.13; the value is Linux's
_HEADROOM = 1.25  # of spare memory: the next array may be larger by so much
_LOOSEST = 3  # times what an array needs: it must not take the memory of a much larger one


def physical_bytes() -> int:
    """Memory of this machine: no array can ever use more."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def reserved(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros that costs address space only, until its pages are written.

    Large pages are asked for: a random look-up then seldom misses the address cache as well as the data cache.

    Raises
    ------
    MemoryError
        The system refuses the address space.
    """
    return np.frombuffer(_pages(shape, dtype), dtype, math.prod(shape)).reshape(shape)


def _pages(shape: tuple[int, ...], dtype: DTypeLike, headroom: float = 1.0) -> mmap.mmap:
    size = max(1, int(headroom * math.prod(shape) * np.dtype(dtype).itemsize))  # mmap refuses 0
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
    return pages


class Spare:
    """Memory that comes back when the last view of an array goes, and serves the next array that fits into it.

    The system clears each page before a process may write to it, and a virtual machine may have to find it first: up
    to ten times what filling it takes. Snapshots come again and again, of about the same size.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    @property
    def bytes(self) -> int:
        """What is kept and not in use."""
        return sum(map(len, self._free))

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialised array. Raises MemoryError as ``reserved``."""
        size, free = math.prod(shape) * np.dtype(dtype).itemsize, self._free
        least, most = max(1, size), max(1, _LOOSEST * size)
        fitting = min((pages for pages in free if least <= len(pages) <= most), key=len, default=None)
        outgrown = max((pages for pages in free if len(pages) < size), key=len, default=None)
        if (gone := fitting or outgrown) is not None:  # what has become too small is given up
            free.remove(gone)
        pages = fitting or _pages(shape, dtype, _HEADROOM)
        whole = np.frombuffer(pages, np.uint8)  # every view of an array has this one as its base
        weakref.finalize(whole, free.append, pages).atexit = False
        return whole[:size].view(dtype).reshape(shape)

    def provide(self, arrays: Iterable[NDArray[Any]]) -> None:
        """Have the pages of these arrays provided and give up all memory but theirs; fit for a thread."""
        self._free.clear()
        for array in arrays:
            touch(array.reshape(-1).view(np.uint8), 0, array.nbytes)


def aligned(shape: tuple[int, int]) -> NDArray[np.float32]:
    """An uninitialised array whose memory starts at a multiple of 64 bytes, where vectorised sums start evenly."""
    size = shape[0] * shape[1]
    memory = np.empty(size + 16, np.float32)
    offset = -memory.ctypes.data % 64 // 4
    return memory[offset : offset + size].reshape(shape)
