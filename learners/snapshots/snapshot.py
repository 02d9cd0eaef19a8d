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
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.deepfm.model_state import sha256_of
from learners.deepfm.older_snapshots import with_chosen_precision, without_auto
from learners.features.shape import ModelShape
from learners.snapshots.safetensors_pieces import pieces_of
from learners.snapshots.store import Pieces, Store, store_of

KEPT, KEPT_DAYS = 3, 30
"""The newest snapshots that stay in a store, and the days of which one more stays."""

_FORMAT = 2
_DAY_MS = 86_400_000
_MANIFEST, _MODEL, _CALIBRATION = "manifest.json", "model.safetensors", "calibration.bin"
_DESCRIBED = ("version", "created_from", "watermark_ms", "newest_event_ms", "weights_sha256")
_FOLDER = re.compile(r"v(\d{12})$")
_log = structlog.get_logger(__name__)


class SnapshotError(ValueError):
    """A snapshot that cannot be used.

    ├── TornSnapshotError : incomplete or damaged; an older one may be whole
    └── SnapshotSpecError : made with another feature spec
    """


class TornSnapshotError(SnapshotError):
    """A file is missing, has another size or another checksum, or cannot be decoded."""


class SnapshotSpecError(SnapshotError):
    """The snapshot's feature spec is not the one asked for."""


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
    calibration: bytes | None = None  # of the head of clicks, counted on the rows that its base was replayed on

    def model(self) -> DeepFM:
        """The model itself, ready to continue."""
        return DeepFM.from_state(self.config, self.shape, self.state)

    def weights_sha256(self) -> str:
        """What ``model().weights_sha256()`` says."""
        return sha256_of(self.state)


class _File(msgspec.Struct, frozen=True):
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
    shape: ModelShape
    config: DeepFMConfig
    weights_sha256: str
    files: dict[str, _File]


class Written(msgspec.Struct, frozen=True):
    """Where a snapshot lies and the SHA-256 of its manifest, which fixes that of every file."""

    url: str
    sha256: str


def write_snapshot(root: str, snapshot: Snapshot, *, keep: int = KEPT, keep_days: int = KEPT_DAYS) -> Written:
    """Write a snapshot under ``root`` (directory or fsspec URL) and drop those that need not be kept.

    A snapshot of the same version is replaced. Fit for a thread beside the learning: what takes long (hashing, writing)
    does not hold the interpreter.
    """
    files = {_MODEL: _Hashed(pieces_of(snapshot.state))}
    if snapshot.calibration is not None:
        files[_CALIBRATION] = _Hashed([snapshot.calibration])
    manifest = _Hashed(_manifest_of(snapshot, snapshot.weights_sha256(), files))
    store = store_of(root)
    name = f"v{snapshot.version:012d}"
    store.write_folder(name, {**files, _MANIFEST: manifest})  # the manifest last, when the others' hashes are known
    for old in _superfluous(store, keep, keep_days):
        if old != snapshot.version:
            store.remove_folder(f"v{old:012d}")
    return Written(store.url(name), manifest.described().sha256)


class _Hashed:
    """The pieces of a file, hashed as they pass on their way to the disk."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces, self._digest, self._size = pieces, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self._digest.update(piece)
            self._size += len(piece)
            yield piece

    def described(self) -> _File:
        """What has passed."""
        return _File(self._size, self._digest.hexdigest())


def _manifest_of(snapshot: Snapshot, weights_sha256: str, files: Mapping[str, _Hashed]) -> Iterator[bytes]:
    """The manifest in one piece, made when it is asked for: after the files have passed."""
    manifest = Manifest(
        format=_FORMAT,
        version=snapshot.version,
        created_from=snapshot.created_from,
        watermark_ms=snapshot.watermark_ms,
        newest_event_ms=snapshot.newest_event_ms,
        offsets=dict(snapshot.offsets),
        line=snapshot.version if snapshot.created_from == "base" else snapshot.line,
        shape=snapshot.shape,
        config=snapshot.config,
        weights_sha256=weights_sha256,
        files={name: file.described() for name, file in files.items()},
    )
    yield msgspec.json.format(msgspec.json.encode(manifest))


def _superfluous(store: Store, keep: int, keep_days: int) -> list[int]:
    """The versions to drop: neither among the newest, nor a day's newest or its base. Torn ones are no day's."""
    stored = _versions(store)
    manifests = {version: manifest for version in stored if (manifest := _manifest_or_none(store, version)) is not None}
    days = {version: manifest.watermark_ms // _DAY_MS for version, manifest in manifests.items()}
    newest_of_day = {day: version for version, day in sorted(days.items())}
    first_day = max(days.values(), default=0) - keep_days + 1
    stays = {version for day, version in newest_of_day.items() if day >= first_day}
    stays |= {v for v, one in manifests.items() if one.created_from == "base" and days[v] >= first_day}
    return [version for version in stored[keep:] if version not in stays]


def _manifest_or_none(store: Store, version: int) -> Manifest | None:
    try:
        return read_manifest(store.url(f"v{version:012d}"))
    except SnapshotError:
        return None


def read_manifest(url: str) -> Manifest:
    """The manifest of the snapshot at ``url``; TornSnapshotError when there is none that can be read."""
    root, _, name = url.rstrip("/").rpartition("/")
    try:
        raw = store_of(root or ".").read(f"{name}/{_MANIFEST}")
        manifest = msgspec.convert(without_auto(msgspec.json.decode(raw)), Manifest, str_keys=True)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise TornSnapshotError(
            f"{url} has no readable {_MANIFEST} ({error}): it was never finished or is no snapshot. Take another one."
        ) from error
    if manifest.format != _FORMAT:
        raise SnapshotError(
            f"{url} has format {manifest.format}, this program reads {_FORMAT}: the arrays may mean something else. "
            "Read it with the release that wrote it."
        )
    return manifest


def load_snapshot(url: str, *, spec_hash: str | None = None) -> Snapshot:
    """Read the snapshot at ``url``, every checksum checked.

    Raises
    ------
    TornSnapshotError
        Missing, short or altered files.
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
        state = load(files[_MODEL])
    except (KeyError, SafetensorError) as error:
        raise TornSnapshotError(f"{url}/{_MODEL} cannot be decoded: {error}. Take an older snapshot.") from error
    return Snapshot(
        version=manifest.version,
        created_from=manifest.created_from,
        watermark_ms=manifest.watermark_ms,
        newest_event_ms=manifest.newest_event_ms,
        shape=manifest.shape,
        config=with_chosen_precision(manifest.config, state),
        state=state,
        offsets=manifest.offsets,
        line=manifest.version if manifest.created_from == "base" else manifest.line,
        calibration=files.get(_CALIBRATION),
    )


def newest_line(root: str) -> int:
    """The line of the newest snapshot under ``root`` whose manifest can be read; 0 where there is none."""
    store = store_of(root)
    manifests = (_manifest_or_none(store, version) for version in _versions(store))
    newest = next((one for one in manifests if one is not None), None)
    if newest is None:
        return 0
    return newest.version if newest.created_from == "base" else newest.line


def newest_snapshot(root: str, *, spec_hash: str | None = None) -> tuple[str, Snapshot] | None:
    """Url and content of the newest whole snapshot under ``root``; None where there is none.

    A torn one is skipped with a warning. One of another spec is refused, not skipped: SnapshotSpecError.
    """
    store = store_of(root)
    for version in _versions(store):
        url = store.url(f"v{version:012d}")
        try:
            return url, load_snapshot(url, spec_hash=spec_hash)
        except TornSnapshotError as error:
            _log.warning("torn snapshot skipped", url=url, error=str(error))
    return None


def versions(root: str) -> list[int]:
    """The versions under ``root``, newest first, whole or torn."""
    return _versions(store_of(root))


def describe(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain data, for people and JSON."""
    return {
        **{name: getattr(manifest, name) for name in _DESCRIBED},
        "offsets": {str(partition): offset for partition, offset in sorted(manifest.offsets.items())},
        "shape": asdict(manifest.shape),
        "config": asdict(manifest.config),
        "files": {name: {"size": file.size, "sha256": file.sha256} for name, file in manifest.files.items()},
    }


def _read_checked(url: str, name: str, expected: _File) -> bytes:
    root, _, folder = url.rstrip("/").rpartition("/")
    try:
        data = store_of(root or ".").read(f"{folder}/{name}")
    except OSError as error:
        raise TornSnapshotError(f"{url}/{name} cannot be read: {error}. Take an older snapshot.") from error
    found = hashlib.sha256(data).hexdigest()
    if len(data) != expected.size or found != expected.sha256:
        raise TornSnapshotError(
            f"{url}/{name} has {len(data)} bytes of sha256 {found}, its manifest says {expected.size} of "
            f"{expected.sha256}: it was cut short or altered. Take an older snapshot."
        )
    return data


def _versions(store: Store) -> list[int]:
    """Newest first."""
    matches = (_FOLDER.match(name) for name in store.folders())
    return sorted((int(match.group(1)) for match in matches if match), reverse=True)
