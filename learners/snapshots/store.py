"""Folders of files in a directory or behind an fsspec URL, so written that no reader takes half a folder for one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]  # it ships no types

Pieces = Iterable[bytes | memoryview]
"""A file's content, to be written one after the other."""

_UNFINISHED, _REPLACED = ".unfinished", ".replaced"


class Store(Protocol):
    """Flat folders of files under one root."""

    def url(self, folder: str) -> str:
        """Where a folder lies, for people and for other processes."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders under the root; none when the root does not exist yet."""
        ...

    def read(self, path: str) -> bytes:
        """Content of ``folder/file``; OSError when it cannot be read."""
        ...

    def write_folder(self, folder: str, files: Mapping[str, Pieces]) -> None:
        """Write the files in their order, the last one last, replacing a folder of that name."""
        ...

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and its files."""
        ...


def store_of(root: str) -> Store:
    """A directory for a plain path or ``file://``, any other URL through fsspec."""
    if "://" in root and not root.startswith("file://"):
        return UrlStore(root)
    return DirectoryStore(Path(root.removeprefix("file://")))


class DirectoryStore:
    """A local directory: a folder appears by one rename, after everything in it is on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def url(self, folder: str) -> str:
        """Where the folder is."""
        return str(self.root / folder)

    def folders(self) -> list[str]:
        """Unfinished ones included: their names start with a dot."""
        if not self.root.is_dir():
            return []
        return [entry.name for entry in self.root.iterdir() if entry.is_dir()]

    def read(self, path: str) -> bytes:
        """The file's content."""
        return (self.root / path).read_bytes()

    def write_folder(self, folder: str, files: Mapping[str, Pieces]) -> None:
        """Write under another name, sync, rename; what a writer that died left behind goes."""
        unfinished, replaced = self.root / f".{folder}{_UNFINISHED}", self.root / f".{folder}{_REPLACED}"
        for name in self.folders():
            if name.startswith(".") and name.endswith((_UNFINISHED, _REPLACED)):
                shutil.rmtree(self.root / name, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, pieces in files.items():
            write_synced(unfinished / name, pieces)
        sync_directory(unfinished)
        final = self.root / folder
        if final.exists():  # a directory cannot be renamed over another that holds files
            final.rename(replaced)
        unfinished.rename(final)
        sync_directory(self.root)
        shutil.rmtree(replaced, ignore_errors=True)

    def remove_folder(self, folder: str) -> None:
        """Remove it."""
        shutil.rmtree(self.root / folder)


class UrlStore:
    """Any file system that fsspec knows. There is no rename: the last file of a folder is what completes it."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._files: Any
        self._files, self._path = fsspec.core.url_to_fs(self.root)

    def url(self, folder: str) -> str:
        """Where the folder is."""
        return f"{self.root}/{folder}"

    def folders(self) -> list[str]:
        """Unfinished ones included: they lack their last file."""
        try:
            entries = self._files.ls(self._path, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]

    def read(self, path: str) -> bytes:
        """The file's content."""
        return bytes(self._files.cat_file(f"{self._path}/{path}"))

    def write_folder(self, folder: str, files: Mapping[str, Pieces]) -> None:
        """Write in order; a folder of that name loses its last file first."""
        *_, completing = files
        if self._files.exists(f"{self._path}/{folder}/{completing}"):
            self._files.rm_file(f"{self._path}/{folder}/{completing}")
        self._files.makedirs(f"{self._path}/{folder}", exist_ok=True)
        for name, pieces in files.items():
            with self._files.open(f"{self._path}/{folder}/{name}", "wb") as file:
                for piece in pieces:
                    file.write(piece)

    def remove_folder(self, folder: str) -> None:
        """Remove it."""
        self._files.rm(f"{self._path}/{folder}", recursive=True)


def write_synced(path: Path, pieces: Pieces) -> None:
    """Write a new file of these pieces; when this returns they are on the disk."""
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Have the directory's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
