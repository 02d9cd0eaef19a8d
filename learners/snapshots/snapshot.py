"""Snapshots: a model's whole state in a store, there whole or not at all.

A snapshot is a folder ``v000000000042`` under the store's root, a directory or any fsspec URL:
``manifest.json`` (what it is, the SHA-256 of its weights, and the size and SHA-256 of every other file),
``model.safetensors`` (weights and optimiser, learned rows only) and ``calibration.bin`` where there is a calibrator. On
a local disk the folder is written under another name, fsynced and renamed; elsewhere the manifest is written last. A
reader believes only a folder whose manifest and checksums fit.

The newest ``KEPT`` stay, and of each UTC day of the watermark the newest one and a base, for ``KEPT_DAYS``: a version
of last week can be made again from the snapshot before it, and a bad day can be gone back behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.deepfm.model_state import sha256_of
from learners.deepfm.older_snapshots import with_chosen_precision
from learners.deepfm.state_checks import check_state
from learners.features.shape import ModelShape
from learners.features.spec import FeatureSpec
from learners.snapshots.manifest import (
    CALIBRATION,
    FORMAT,
    MANIFEST,
    MODEL,
    File,
    Manifest,
    SnapshotError,
    SnapshotSpecError,
    TornSnapshotError,
    UnsoundSnapshotError,
    folder_of,
    read_manifest,
)
from learners.snapshots.safetensors_pieces import pieces_of
from learners.snapshots.store import Pieces, Store, store_of
from learners.snapshots.stored import manifest_or_none, stored_versions, superfluous

KEPT, KEPT_DAYS = 3, 30
"""The newest snapshots that stay in a store, and the days of which one more stays."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """A model at one version and where its stream stood."""

    version: int
    created_from: str  # "base" or "stream"
    watermark_ms: int  # event time: every example known before it is in the model
    newest_event_ms: int  # event time of the newest example learned
    shape: ModelShape
    config: DeepFMConfig
    state: Mapping[str, NDArray[Any]]
    offsets: Mapping[int, int] = field(default_factory=dict)  # examples partition → first offset not learned
    line: int = 0  # the version of the base that it comes from; 0: unknown. Of a base it is the version itself
    stream: str = ""  # the log that it was learned from; "" where that is unknown, as of a base
    calibration: bytes | None = None  # of the head of clicks, counted on the rows that its base was replayed on

    def model(self) -> DeepFM:
        """The model itself, ready to continue."""
        return DeepFM.from_state(self.config, self.shape, self.state)

    def weights_sha256(self) -> str:
        """What ``model().weights_sha256()`` says."""
        return sha256_of(self.state)


class Written(msgspec.Struct, frozen=True):
    """Where a snapshot lies and the SHA-256 of its manifest, which fixes that of every file."""

    url: str
    sha256: str


def write_snapshot(root: str, snapshot: Snapshot, *, keep: int = KEPT, keep_days: int = KEPT_DAYS) -> Written:
    """Write a snapshot under ``root`` (directory or fsspec URL) and drop those that need not be kept.

    A snapshot of the same version is replaced, but an equal one is let be: killed while it is replaced, a folder that
    was sound would be in two halves for nothing. Fit for a thread beside the learning: what takes long (hashing,
    writing) does not hold the interpreter.

    Raises
    ------
    OSError
        The store cannot be written to, or is full; what it held before it still holds. A store behind a URL raises
        what its client does.
    """
    store, name = store_of(root), folder_of(snapshot.version)
    written = _written_already(store, snapshot) if name in store.folders() else None
    if written is None:
        files = _files_of(snapshot)
        manifest = _Hashed(_manifest_of(snapshot, snapshot.weights_sha256(), files))
        # the manifest last, when the others' hashes are known
        store.write_folder(name, {**files, MANIFEST: manifest})
        written = Written(store.url(name), manifest.described().sha256)
    for old in superfluous(store, snapshot.watermark_ms, snapshot.version, keep, keep_days):
        try:
            store.remove_folder(folder_of(old))
        except OSError as error:
            _log.warning("a snapshot that is no longer needed stays", url=store.url(folder_of(old)), error=str(error))
    return written


def _written_already(store: Store, snapshot: Snapshot) -> Written | None:
    """The snapshot as it lies in the store, whole; None where it does not, or another one of its version."""
    url = store.url(folder_of(snapshot.version))
    files = _files_of(snapshot)
    for file in files.values():
        for _ in file:
            pass
    (manifest,) = _manifest_of(snapshot, snapshot.weights_sha256(), files)
    try:
        found = store.read(f"{folder_of(snapshot.version)}/{MANIFEST}", most_bytes=len(manifest))
        if found != manifest:
            return None
        for name, file in files.items():
            _read_checked(url, name, file.described())
    except (OSError, SnapshotError):
        return None
    return Written(url, hashlib.sha256(manifest).hexdigest())


def _files_of(snapshot: Snapshot) -> dict[str, _Hashed]:
    files = {MODEL: _Hashed(pieces_of(snapshot.state))}
    if snapshot.calibration is not None:
        files[CALIBRATION] = _Hashed([snapshot.calibration])
    return files


class _Hashed:
    """The pieces of a file, hashed as they pass on their way to the disk."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces, self._digest, self._size = pieces, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self._digest.update(piece)
            self._size += len(piece)
            yield piece

    def described(self) -> File:
        """What has passed."""
        return File(self._size, self._digest.hexdigest())


def _manifest_of(snapshot: Snapshot, weights_sha256: str, files: Mapping[str, _Hashed]) -> Iterator[bytes]:
    """The manifest in one piece, made when it is asked for: after the files have passed."""
    manifest = Manifest(
        format=FORMAT,
        version=snapshot.version,
        created_from=snapshot.created_from,
        watermark_ms=snapshot.watermark_ms,
        newest_event_ms=snapshot.newest_event_ms,
        offsets=dict(snapshot.offsets),
        line=snapshot.version if snapshot.created_from == "base" else snapshot.line,
        stream=snapshot.stream,
        shape=snapshot.shape,
        config=snapshot.config,
        weights_sha256=weights_sha256,
        files={name: file.described() for name, file in files.items()},
    )
    yield msgspec.json.format(msgspec.json.encode(manifest))


def load_snapshot(url: str, *, spec_hash: str | None = None) -> Snapshot:
    """Read the snapshot at ``url``: every checksum is checked, and every number held to what it can be.

    Raises
    ------
    TornSnapshotError
        Missing, short or altered files.
    UnsoundSnapshotError
        Whole files of what is no model.
    SnapshotSpecError
        ``spec_hash`` is given and the snapshot has another.
    """
    manifest = read_manifest(url)
    if spec_hash is not None and manifest.shape.spec_hash != spec_hash:
        raise SnapshotSpecError(
            f"{url} was made with feature spec {manifest.shape.spec_name} {manifest.shape.spec_hash}, this run has "
            f"{spec_hash}: its weights mean other fields. Use the spec of the snapshot, or train a base for this one."
        )
    files = {name: _read_checked(url, name, expected) for name, expected in manifest.files.items()}
    try:
        state = load(files[MODEL])
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise TornSnapshotError(f"{url}/{MODEL} cannot be decoded: {error}. Take an older snapshot.") from error
    try:
        check_state(manifest.config, manifest.shape, state)
        config = with_chosen_precision(manifest.config, state)
    except (ValueError, OverflowError) as error:
        raise UnsoundSnapshotError(f"{url}/{MODEL} holds no model that could go on: {error}") from error
    return Snapshot(
        version=manifest.version,
        created_from=manifest.created_from,
        watermark_ms=manifest.watermark_ms,
        newest_event_ms=manifest.newest_event_ms,
        shape=manifest.shape,
        config=config,
        state=state,
        offsets=manifest.offsets,
        line=manifest.line_version,
        stream=manifest.stream,
        calibration=files.get(CALIBRATION),
    )


def newest_line(root: str) -> int:
    """The line of the newest snapshot under ``root`` whose manifest can be read; 0 where there is none to be read."""
    store = store_of(root)
    try:
        stored = stored_versions(store)
    except OSError:  # it is away for now
        return 0
    manifests = (manifest_or_none(store, version) for version in stored)
    newest = next((one for one in manifests if one is not None), None)
    return 0 if newest is None else newest.line_version


def newest_snapshot(
    root: str, *, spec_hash: str | None = None, check: Callable[[Snapshot], None] = lambda snapshot: None
) -> tuple[str, Snapshot] | None:
    """Url and content of the newest whole snapshot under ``root``; None where there is none.

    A torn or unsound one is skipped with a warning. One of another spec is refused, not skipped: SnapshotSpecError.

    check : raises UnsoundSnapshotError for one that the caller cannot go on from; it is skipped likewise.
    """
    store = store_of(root)
    for version in stored_versions(store):
        url = store.url(folder_of(version))
        try:
            snapshot = load_snapshot(url, spec_hash=spec_hash)
            check(snapshot)
        except TornSnapshotError as error:
            _log.warning("torn snapshot skipped", url=url, error=str(error))
        else:
            return url, snapshot
    return None


def check_columns(snapshot: Snapshot, spec: FeatureSpec) -> None:
    """Raise UnsoundSnapshotError for a snapshot that names ``spec``, and has other columns than it."""
    found, wanted = snapshot.shape, ModelShape.of(spec)
    for name in ("id_columns", "embedded", "names", "dense"):
        if getattr(found, name) != getattr(wanted, name):
            raise UnsoundSnapshotError(
                f"snapshot {snapshot.version} has {name} {getattr(found, name)}, its feature spec {spec.name} "
                f"{getattr(wanted, name)}: no row of that spec could be scored. It was altered; take an older snapshot."
            )


def versions(root: str) -> list[int]:
    """The versions under ``root``, newest first, whole or torn."""
    return stored_versions(store_of(root))


def _read_checked(url: str, name: str, expected: File) -> bytes:
    root, _, folder = url.rstrip("/").rpartition("/")
    try:
        data = store_of(root or ".").read(f"{folder}/{name}", most_bytes=expected.size)
    except OSError as error:
        raise TornSnapshotError(f"{url}/{name} cannot be read: {error}. Take an older snapshot.") from error
    found = hashlib.sha256(data).hexdigest()
    if len(data) != expected.size or found != expected.sha256:
        raise TornSnapshotError(
            f"{url}/{name} has {len(data)} bytes of sha256 {found}, its manifest says {expected.size} of "
            f"{expected.sha256}: it was cut short or altered. Take an older snapshot."
        )
    return data
