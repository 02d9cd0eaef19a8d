"""``manifest.json``: what a snapshot is, and the size and SHA-256 of every other file of its folder.

It comes from a disk that others may write to: every number is held to its range before anybody counts on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from learners.deepfm.model import DeepFMConfig
from learners.deepfm.older_snapshots import without_auto
from learners.features.shape import ModelShape
from learners.snapshots.store import store_of

FORMAT = 2
MANIFEST, MODEL, CALIBRATION = "manifest.json", "model.safetensors", "calibration.bin"
MOST_VERSION = 10**11
"""Three thousand years of a version a second; folders are named by twelve digits."""

_FILES = frozenset({MODEL, CALIBRATION})
_MOST_FORMAT = 1000  # of a release to come
_MOST_MANIFEST_BYTES = 4 << 20
_YEAR_2106_MS = (1 << 32) * 1000  # the table's last seen times end there
_MOST_OFFSET, _MOST_PARTITION = (1 << 63) - 1, (1 << 31) - 1
_DESCRIBED = ("version", "created_from", "watermark_ms", "newest_event_ms", "weights_sha256")
_FOLDER = re.compile(r"v(\d{12})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class SnapshotError(ValueError):
    """A snapshot that cannot be used.

    ├── TornSnapshotError : incomplete or damaged; an older one may be whole
    │   └── UnsoundSnapshotError : whole, but what it says cannot be so
    └── SnapshotSpecError : made with another feature spec
    """


class TornSnapshotError(SnapshotError):
    """A file is missing, has another size or another checksum, or cannot be decoded."""


class UnsoundSnapshotError(TornSnapshotError):
    """Numbers that no training or stream leads to, arrays that are missing or do not fit, files outside its folder."""


class SnapshotSpecError(SnapshotError):
    """The snapshot's feature spec is not the one asked for."""


class File(msgspec.Struct, frozen=True):
    """One file of the folder."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``manifest.json``."""

    format: int
    version: int
    created_from: str
    watermark_ms: int
    newest_event_ms: int
    offsets: dict[int, int]
    line: int = 0
    stream: str = ""
    shape: ModelShape
    config: DeepFMConfig
    weights_sha256: str
    files: dict[str, File]

    @property
    def line_version(self) -> int:
        """The version of the base that it comes from; of a base its own, 0 where that is unknown."""
        return self.version if self.created_from == "base" else self.line


def folder_of(version: int) -> str:
    """The name of a version's folder."""
    return f"v{version:012d}"


def version_of(folder: str) -> int | None:
    """The version that a folder is named by; None for any other folder."""
    match = _FOLDER.fullmatch(folder)
    version = int(match.group(1)) if match else MOST_VERSION + 1
    return version if version <= MOST_VERSION else None


def read_manifest(url: str) -> Manifest:
    """The manifest of the snapshot at ``url``.

    Raises
    ------
    TornSnapshotError
        There is none that can be read, or what it says cannot be so.
    SnapshotError
        It is of another format.
    """
    root, _, name = url.rstrip("/").rpartition("/")
    try:
        raw = store_of(root or ".").read(f"{name}/{MANIFEST}", most_bytes=_MOST_MANIFEST_BYTES)
        decoded = msgspec.json.decode(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise TornSnapshotError(
            f"{url} has no readable {MANIFEST} ({error}): it was never finished or is no snapshot. Take another one."
        ) from error
    found = decoded.get("format") if isinstance(decoded, dict) else None
    if isinstance(found, int) and 0 < found <= _MOST_FORMAT and found != FORMAT:
        raise SnapshotError(
            f"{url} has format {found}, this program reads {FORMAT}: the arrays may mean something else. "
            "Read it with the release that wrote it."
        )
    try:
        manifest = msgspec.convert(without_auto(decoded), Manifest, str_keys=True)
    except (ValueError, OverflowError, TypeError) as error:
        raise TornSnapshotError(
            f"{url} has no readable {MANIFEST} ({error}): it was never finished or is no snapshot. Take another one."
        ) from error
    if fault := _fault(manifest, version_of(name)):
        raise UnsoundSnapshotError(f"{url}/{MANIFEST} has {fault}. It was altered or damaged; take an older snapshot.")
    return manifest


def describe(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain data, for people and JSON."""
    return {
        **{name: getattr(manifest, name) for name in _DESCRIBED},
        "offsets": {str(partition): offset for partition, offset in sorted(manifest.offsets.items())},
        "shape": asdict(manifest.shape),
        "config": asdict(manifest.config),
        "files": {name: {"size": file.size, "sha256": file.sha256} for name, file in manifest.files.items()},
    }


def _fault(manifest: Manifest, folder_version: int | None) -> str:
    """What cannot be so, with its bound and what would come of it; "" for a sound one."""
    if manifest.format != FORMAT:
        return f"format {manifest.format}, which no release has written: the arrays may mean anything"
    if fault := _fault_of_numbers(manifest):
        return fault
    if folder_version is not None and folder_version != manifest.version:
        return f"version {manifest.version} in the folder of {folder_version}: one would be taken for the other"
    if manifest.created_from not in ("base", "stream"):
        return f"created_from {manifest.created_from!r:.80}, which must be base or stream: nobody could go on from it"
    return _fault_of_files(manifest)


def _fault_of_numbers(manifest: Manifest) -> str:
    bounds: Mapping[str, int] = {
        "version": MOST_VERSION, "line": MOST_VERSION, "watermark_ms": _YEAR_2106_MS - 1,
        "newest_event_ms": _YEAR_2106_MS - 1,
    }  # fmt: skip
    for name, most in bounds.items():
        if not 0 <= (value := getattr(manifest, name)) <= most:
            return f"{name} {value}, which must be 0 to {most}: nothing that counts on from there could be stored"
    for partition, offset in manifest.offsets.items():
        if not (0 <= partition <= _MOST_PARTITION and 0 <= offset <= _MOST_OFFSET):
            return f"offset {offset} of partition {partition}, which no log has: the stream could not go on there"
    return ""


def _fault_of_files(manifest: Manifest) -> str:
    if outside := sorted(manifest.files.keys() - _FILES):
        return f"the file {outside[0]!r:.80}, which must be one of {', '.join(sorted(_FILES))}: no other is read"
    if MODEL not in manifest.files:
        return f"no {MODEL}: there is no model in it"
    hashes = [manifest.weights_sha256, *(file.sha256 for file in manifest.files.values())]
    if not all(map(_SHA256.fullmatch, hashes)) or any(file.size < 0 for file in manifest.files.values()):
        return "a size or checksum that no file has: what it names could not be checked"
    return ""
