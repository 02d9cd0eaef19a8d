"""Where part files of examples go: a directory, or any fsspec URL. A file appears whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]  # it ships no types

from learners.examples.archive_parts import LogRange, archived_up_to
from learners.examples.archive_writer import NamedSpec, write_part
from stream.archive.part_buffer import ArchivePart


class ArchiveStore(Protocol):
    """Part files under one root."""

    @property
    def url(self) -> str:
        """Where they lie, for people."""
        ...

    def up_to(self) -> dict[int, int]:
        """Partition → the first offset that no part holds."""
        ...

    def write(self, part: ArchivePart, spec: NamedSpec) -> None:
        """Write one part; when this returns, it stays."""
        ...


def archive_store_of(root: str) -> ArchiveStore:
    """A directory for a plain path or ``file://``, any other URL through fsspec."""
    if "://" in root and not root.startswith("file://"):
        return UrlArchive(root)
    return DirectoryArchive(Path(root.removeprefix("file://")))


class DirectoryArchive:
    """A local directory: a part is written under another name, synced, renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The directory."""
        return str(self.root)

    def up_to(self) -> dict[int, int]:
        """By the names of the part files."""
        return archived_up_to(self.root)

    def write(self, part: ArchivePart, spec: NamedSpec) -> None:
        """Write it in place."""
        _write(self.root, part, spec)


class UrlArchive:
    """Behind a URL: a part is made on the local disk, sent under another name, moved."""

    def __init__(self, root: str) -> None:
        self.url = root.rstrip("/")
        self._files: Any
        self._files, self._path = fsspec.core.url_to_fs(self.url)

    def up_to(self) -> dict[int, int]:
        """By the names of the part files."""
        found: dict[int, int] = {}
        paths = self._files.find(self._path) if self._files.exists(self._path) else []
        for log_range in (LogRange.of(Path(path)) for path in paths):
            if log_range is not None:
                found[log_range.partition] = max(found.get(log_range.partition, 0), log_range.next_offset)
        return found

    def write(self, part: ArchivePart, spec: NamedSpec) -> None:
        """Make, send, move."""
        with tempfile.TemporaryDirectory(prefix="millstream-archive-") as folder:
            made = _write(Path(folder), part, spec)
            target = f"{self._path}/{made.parent.name}/{made.name}"
            self._files.makedirs(f"{self._path}/{made.parent.name}", exist_ok=True)
            self._files.put_file(str(made), f"{target}.unfinished")
            self._files.mv(f"{target}.unfinished", target)


def _write(folder: Path, part: ArchivePart, spec: NamedSpec) -> Path:
    return write_part(folder, part.day, part.log_range, part.rows, spec, offset=part.offset, ordinal=part.ordinal)
