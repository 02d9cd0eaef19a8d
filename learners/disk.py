"""A file written past the system's cache, which would take memory from others for what is not read again soon.

In a virtual machine the cache's memory may have to be found first, at ten times the cost of writing to the disk.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096  # what a disk takes past the cache: whole blocks from memory at multiples of it
_BUFFER = 4 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


def write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a new file of these pieces; when this returns they are on the disk. Does not hold the interpreter."""
    descriptor = _opened(path)
    try:
        buffer, filled = np.frombuffer(mmap.mmap(-1, _BUFFER), np.uint8), 0
        for piece in pieces:
            rest = np.frombuffer(piece, np.uint8)
            while len(rest):
                count = min(len(rest), _BUFFER - filled)
                np.copyto(buffer[filled : filled + count], rest[:count])
                filled, rest = filled + count, rest[count:]
                if filled == _BUFFER:
                    _write(descriptor, buffer)
                    filled = 0
        whole = filled // _BLOCK * _BLOCK
        _write(descriptor, buffer[:whole])
        _use_cache(descriptor)
        _write(descriptor, buffer[whole:filled])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError:  # a file system that has no other way than its cache
        return os.open(path, flags, 0o666)


def _use_cache(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_DIRECT)


def _write(descriptor: int, content: NDArray[np.uint8]) -> None:
    while len(content):  # the system may take less than all
        try:
            content = content[os.write(descriptor, content.data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & _DIRECT:
                raise
            _use_cache(descriptor)  # a file system, or a rest of a block, that goes no other way
