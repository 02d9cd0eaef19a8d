"""A folder of snapshots is one stream's: what its manifests say, and a lock for who has written nothing yet."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from learners.snapshots.owner import FolderLock, ForeignFolderError, check_stream
from learners.snapshots.snapshot import load_snapshot, write_snapshot
from tests.learners.snapshots.test_snapshot import root, snapshot

__all__ = ["root"]


def test_a_snapshot_says_its_stream_and_another_one_is_refused(root: str) -> None:
    """Bases and snapshots of before are anybody's; the newest that tells decides."""
    write_snapshot(root, dataclasses.replace(snapshot(1), created_from="base"))
    check_stream(root, "one/")
    written = write_snapshot(root, dataclasses.replace(snapshot(2), stream="one/"))
    write_snapshot(root, snapshot(3))
    assert load_snapshot(written.url).stream == "one/"
    check_stream(root, "one/")
    with pytest.raises(ForeignFolderError, match=r"version 2 of stream one/, this is two/.*MILLSTREAM_ADOPT_SNAPSHOTS"):
        check_stream(root, "two/")
    write_snapshot(root, dataclasses.replace(snapshot(4), stream="two/"))
    check_stream(root, "two/")


def test_two_streams_cannot_hold_one_folder(tmp_path: Path) -> None:
    """Another process of another stream is refused, one of the same goes on; both when the first has ended."""
    script = (
        "import sys; from learners.snapshots.owner import FolderLock\n"
        "lock = FolderLock.take(sys.argv[1], 'one/'); print('taken', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(ForeignFolderError, match=r"in use by stream one/, this is two/.*Stop that learner"):
            FolderLock.take(str(tmp_path), "two/")
        FolderLock.take(str(tmp_path), "one/").release()
        other.kill()
    lock = FolderLock.take(str(tmp_path), "two/")
    with pytest.raises(ForeignFolderError, match="in use by stream two/"):
        FolderLock.take(str(tmp_path), "one/")
    lock.release()
    FolderLock.take(str(tmp_path), "one/").release()


def test_where_there_can_be_no_lock_there_is_none(tmp_path: Path) -> None:
    """Behind a URL, in a folder that cannot be written."""
    (tmp_path / "file").write_bytes(b"")
    for where in ("memory://x/y", str(tmp_path / "file"), str(tmp_path / "missing")):
        first, second = FolderLock.take(where, "one/"), FolderLock.take(where, "two/")
        first.release()
        second.release()
