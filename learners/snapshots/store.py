"""Folders of files in a directory or behind an fsspec URL, so written that no reader takes half a folder for one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
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

    def check_writable(self) -> None:
        """OSError where a folder could surely not be written: said before hours of work, not after."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders under the root; none when the root does not exist yet."""
        ...

    def read(self, path: str, *, most_bytes: int | None = None) -> bytes:
        """Content of ``folder/file``; OSError when it cannot be read, is longer, or would lie outside of its folder."""
        ...

    def write_folder(self, folder: str, files: Mapping[str, Pieces]) -> None:
        """Write the files in their order, the last one last, replacing a folder of that name."""
        ...

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and its files."""
        ...


def store_of(root: str) -> Store:
    """A directory for a plain path or ``file://``, any other URL through fsspec."""
    folder = directory_of(root)
    return UrlStore(root) if folder is None else DirectoryStore(folder)


def directory_of(root: str) -> Path | None:
    """The local directory that ``root`` names; None for what lies behind another URL. ValueError for no name."""
    if "://" in root and not root.startswith("file://"):
        return None
    if not root or "\0" in root:
        raise ValueError(f"{root!r} is no folder: nothing could be read or written. Name a folder or URL.")
    return Path(root.removeprefix("file://"))


class DirectoryStore:
    """A local directory: a folder appears by one rename, after everything in it is on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def url(self, folder: str) -> str:
        """Where the folder is."""
        return str(self.root / folder)

    def check_writable(self) -> None:
        """By what of the root there is."""
        there = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))

    def folders(self) -> list[str]:
        """Unfinished ones included: their names start with a dot."""
        if not self.root.is_dir():
            return []
        found = [entry.name for entry in self.root.iterdir() if entry.is_dir()]
        replaced = (_name_of_replaced(name) for name in found)
        return found + [name for name in replaced if name is not None and name not in found]

    def read(self, path: str, *, most_bytes: int | None = None) -> bytes:
        """The file's content, from the folder that was being replaced where a writer died in between."""
        folder, file = _contained(path)
        at = self._present(folder) / file
        status = at.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{at} is no regular file: reading it might never end. Remove it")
        _check_size(at, status.st_size, most_bytes)
        return at.read_bytes()

    def write_folder(self, folder: str, files: Mapping[str, Pieces]) -> None:
        """Write under another name, sync, rename; what a writer that died left behind goes, or comes back.

        Where this fails, as on a full disk, what was there before stays, and nothing else.
        """
        self._recover()
        unfinished, replaced = self.root / f".{folder}{_UNFINISHED}", self._replaced(folder)
        try:
            unfinished.mkdir(parents=True)
            for name, pieces in files.items():
                write_synced(unfinished / name, pieces)
            sync_directory(unfinished)
            final = self.root / folder
            if final.exists():  # a directory cannot be renamed over another that holds files
                final.rename(replaced)
            unfinished.rename(final)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)  # it would hold the space that the next try needs
            with contextlib.suppress(OSError):
                self._recover()
            raise
        sync_directory(self.root)
        shutil.rmtree(replaced, ignore_errors=True)

    def remove_folder(self, folder: str) -> None:
        """Remove it."""
        shutil.rmtree(self._present(folder))

    def _recover(self) -> None:
        """What a writer that died had moved away comes back, unless the new one is in its place already."""
        for name in self.folders():
            if name.startswith(".") and name.endswith(_UNFINISHED):
                shutil.rmtree(self.root / name, ignore_errors=True)
            elif (folder := _name_of_replaced(name)) is not None:
                if (self.root / folder).exists():
                    shutil.rmtree(self.root / name, ignore_errors=True)
                else:
                    (self.root / name).rename(self.root / folder)

    def _present(self, folder: str) -> Path:
        final, replaced = self.root / folder, self._replaced(folder)
        return replaced if not final.exists() and replaced.is_dir() else final

    def _replaced(self, folder: str) -> Path:
        return self.root / f".{folder}{_REPLACED}"


class UrlStore:
    """Any file system that fsspec knows. There is no rename: the last file of a folder is what completes it."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._files: Any
        try:
            self._files, self._path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"{root} cannot be reached ({error}): nothing could be read or written there. Give a folder, or "
                "install what its protocol needs."
            ) from error

    def url(self, folder: str) -> str:
        """Where the folder is."""
        return f"{self.root}/{folder}"

    def check_writable(self) -> None:
        """Only writing tells."""

    def folders(self) -> list[str]:
        """Unfinished ones included: they lack their last file."""
        try:
            entries = self._files.ls(self._path, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]

    def read(self, path: str, *, most_bytes: int | None = None) -> bytes:
        """The file's content."""
        folder, file = _contained(path)
        at = f"{self._path}/{folder}/{file}"
        if most_bytes is not None:
            _check_size(at, int(self._files.info(at)["size"]), most_bytes)
        return bytes(self._files.cat_file(at))

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


def _contained(path: str) -> tuple[str, str]:
    """The folder and the file of a path. OSError unless each is a plain name: names come from files, too."""
    names = path.split("/")
    if len(names) != 2 or any(name in ("", ".", "..") or "\\" in name or "\0" in name for name in names):
        raise OSError(f"{path!r} is no file of a folder of this store, and is not read. Take another one")
    return names[0], names[1]


def _check_size(at: Path | str, size: int, most_bytes: int | None) -> None:
    if most_bytes is not None and size > most_bytes:
        raise OSError(f"{at} has {size} bytes where at most {most_bytes} belong, and is not read")


def _name_of_replaced(name: str) -> str | None:
    if name.startswith(".") and name.endswith(_REPLACED):
        return name[1 : -len(_REPLACED)]
    return None


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
