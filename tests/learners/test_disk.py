"""Files written past the cache hold what was given."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from learners import disk
from learners.disk import write_synced


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * 8192 - 1, 3 * 8192, 3 * 8192 + 4096 + 7])
@pytest.mark.parametrize("piece", [1000, 4096, 20_000])
def test_a_file_holds_the_pieces_in_order(
    size: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes of file, pieces and blocks."""
    monkeypatch.setattr(disk, "_BUFFER", 8192)
    content = np.random.default_rng(0).bytes(size)
    write_synced(tmp_path / "file", [content[start : start + piece] for start in range(0, size, piece)])
    assert (tmp_path / "file").read_bytes() == content


def test_a_file_system_without_direct_writing_is_written_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that refuses the flag."""
    real = os.open

    def refusing(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    write_synced(tmp_path / "file", [b"a" * 5000])
    assert (tmp_path / "file").read_bytes() == b"a" * 5000


def test_one_that_takes_the_flag_and_refuses_the_write_is_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or that takes half a block, so that the rest is none; what is written through the cache and fails, fails."""
    real = os.write

    def refusing(descriptor: int, content: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, content[:1000])

    monkeypatch.setattr(os, "write", refusing)
    write_synced(tmp_path / "file", [b"ab" * 5000])
    assert (tmp_path / "file").read_bytes() == b"ab" * 5000

    def full(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_synced(tmp_path / "other", [b"ab" * 5000])


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    """Nothing of a longer one stays."""
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    write_synced(tmp_path / "file", [b"short"])
    assert (tmp_path / "file").read_bytes() == b"short"
