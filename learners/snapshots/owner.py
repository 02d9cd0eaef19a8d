"""Whose folder of snapshots it is: versions of two streams in one folder would be taken for one line.

The manifests say which stream they are of; a lock, held as long as a learner runs, keeps two apart that have written
nothing yet. A folder of bases alone is nobody's. Behind a URL there is no lock.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from learners.snapshots.manifest import SnapshotError
from learners.snapshots.store import directory_of, store_of
from learners.snapshots.stored import manifest_or_none, stored_versions

_LOCK = ".owner"


class ForeignFolderError(SnapshotError):
    """The folder is another stream's."""


def check_stream(root: str, stream: str) -> None:
    """Raise ForeignFolderError where the newest snapshot that tells is of another stream than ``stream``."""
    store = store_of(root)
    for version in stored_versions(store):
        manifest = manifest_or_none(store, version)
        if manifest is not None and manifest.stream:
            if manifest.stream == stream:
                return
            raise ForeignFolderError(
                f"{root} holds version {version} of stream {manifest.stream}, this is {stream}: versions of two "
                "streams would be mixed, and each would drop the other's. Give --snapshots a folder of its own with a "
                "base, or set MILLSTREAM_ADOPT_SNAPSHOTS=1 once if the log has moved there with all its offsets."
            )


class FolderLock:
    """Held by one stream's learner. A second one of the same stream goes on: the log fences the one before it."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    @classmethod
    def take(cls, root: str, owner: str) -> Self:
        """Take the folder, if it is a local one that can be written, for ``owner``. Raises ForeignFolderError."""
        folder = directory_of(root)
        if folder is None:
            return cls(None)
        try:
            file = (folder / _LOCK).open("a+", encoding="utf-8")
        except OSError:  # read-only: nobody writes into it, and writing says so
            return cls(None)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _text_of(folder / _LOCK)
            file.close()
            if holder in ("", owner):
                return cls(None)
            raise ForeignFolderError(
                f"{root} is in use by stream {holder}, this is {owner}: versions of two streams would be mixed, and "
                "each would drop the other's. Stop that learner, or give --snapshots a folder of its own with a base."
            ) from None
        with suppress(OSError):  # a full disk: the lock holds, its name is missing
            file.truncate(0)
            file.write(owner)
            file.flush()
        return cls(file)

    def release(self) -> None:
        """Let go; the end of the process does so, too."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return os.read(file.fileno(), 400).decode(errors="replace")
    except OSError:
        return ""
