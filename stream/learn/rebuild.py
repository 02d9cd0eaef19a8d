"""Makes a version again, from a snapshot and the journal, and compares it with what was published and kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from learners.features.spec import FeatureSpec
from learners.snapshots.manifest import Manifest, TornSnapshotError, read_manifest
from learners.snapshots.snapshot import Snapshot, load_snapshot, versions
from stream.kafka.broker import Broker
from stream.kafka.log_reader import LogReader
from stream.learn.config import LearningConfig
from stream.learn.loop import Learned, LearningLoop, Skipped
from stream.learn.published import NotPublishedError, follow, last_published
from stream.learn.relearn import loop_state, relearn


class RebuildError(RuntimeError):
    """The version cannot be made again, or there is nothing to compare it with; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A version made again, and the other ways to it."""

    version: int
    start_version: int  # the snapshot it was made from
    batches: int
    rows: int
    seconds: float  # reading and learning
    sha256: str  # the weights made again
    published_sha256: str | None  # the weights that serving has at this version
    deltas: int  # applied for that
    snapshot_sha256: str | None  # what the manifest says, when this version has a snapshot
    notes: list[str]  # why one of them is missing

    @property
    def equal(self) -> bool:
        """Whether all ways lead to the same weights."""
        return all(other in (None, self.sha256) for other in (self.published_sha256, self.snapshot_sha256))


async def rebuild(
    broker: Broker,
    snapshots: str,
    spec: Callable[[Manifest], FeatureSpec],
    *,
    version: int | None = None,
    start_version: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rebuilt:
    """Make ``version`` (the newest published one by default) again and compare.

    It starts from the newest whole snapshot before the version, or from that of ``start_version``; from the version's
    own only where there is none before, or where it is a base, which no journal leads to.

    Parameters
    ----------
    spec
        Gives the feature spec that fits a snapshot.
    progress
        Called with the versions made and to make.

    Raises
    ------
    RebuildError
        No snapshot to start from, or nothing to compare with.
    RelearnError
        The journal or examples that are needed are no longer in the log.
    """
    async with LogReader(broker) as log:
        wanted = await last_published(log) if version is None else version
        start = await asyncio.to_thread(_start, snapshots, wanted, start_version)
        learned = await _learned(log, broker, start, spec(start.manifest), wanted, progress)
        notes: list[str] = []
        published, deltas = await _published(log, await asyncio.to_thread(_before, snapshots, wanted), wanted, notes)
    kept = _kept_sha256(snapshots, wanted, notes)
    if published is None and kept is None:
        raise RebuildError(f"version {wanted} was made again ({learned.sha256}), but: {'; '.join(notes)}.")
    return Rebuilt(
        version=wanted,
        start_version=start.snapshot.version,
        batches=learned.batches,
        rows=learned.rows,
        seconds=learned.seconds,
        sha256=learned.sha256,
        published_sha256=published,
        deltas=deltas,
        snapshot_sha256=kept,
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class _StoredSnapshot:
    manifest: Manifest
    snapshot: Snapshot


@dataclass(slots=True)
class _Run:
    batches: int = 0
    rows: int = 0
    seconds: float = 0.0
    sha256: str = ""


def _start(root: str, version: int, start_version: int | None) -> _StoredSnapshot:
    stored = versions(root)
    if start_version is None and version in stored and _is_base(root, version):
        return _load(root, version)
    if start_version is not None:
        if start_version not in stored or start_version > version:
            raise RebuildError(
                f"{root} holds no snapshot {start_version} from which version {version} could be made; it holds "
                f"{stored}. Give one of them that is not newer."
            )
        return _load(root, start_version)
    found = _before(root, version) or (_load(root, version) if version in stored else None)
    if found is None:
        raise RebuildError(
            f"{root} holds no whole snapshot of version {version} or before, only {stored}: there is nothing to make "
            "the version from. Give a newer version, or the folder in which its snapshots were kept."
        )
    return found


def _before(root: str, version: int) -> _StoredSnapshot | None:
    """The newest whole snapshot before a version."""
    for older in versions(root):
        if older < version:
            try:
                return _load(root, older)
            except TornSnapshotError:
                continue
    return None


def _load(root: str, version: int) -> _StoredSnapshot:
    url = _url(root, version)
    return _StoredSnapshot(read_manifest(url), load_snapshot(url))


def _is_base(root: str, version: int) -> bool:
    try:
        return read_manifest(_url(root, version)).created_from == "base"
    except TornSnapshotError:
        return False


def _url(root: str, version: int) -> str:
    return f"{root.rstrip('/')}/v{version:012d}"


async def _learned(
    log: LogReader,
    broker: Broker,
    start: _StoredSnapshot,
    spec: FeatureSpec,
    version: int,
    progress: Callable[[int, int], None],
) -> _Run:
    run, began = _Run(), time.perf_counter()
    loop = LearningLoop(
        start.snapshot.model(),
        LearningConfig(),
        broker.partitions,
        state=loop_state(start.snapshot),
        version=start.snapshot.version,
    )

    def count(step: Learned | Skipped) -> None:
        run.batches += 1
        run.rows += len(step.rows)
        progress(run.batches, version - start.snapshot.version)

    await relearn(log, loop, spec, last_version=version, progress=count)
    run.seconds = time.perf_counter() - began
    run.sha256 = loop.model.weights_sha256()
    return run


async def _published(
    log: LogReader, older: _StoredSnapshot | None, version: int, notes: list[str]
) -> tuple[str | None, int]:
    """What serving holds: the older snapshot's weights with the published deltas."""
    if older is None:
        notes.append("there is no snapshot before it to apply the published deltas to")
        return None, 0
    model = older.snapshot.model()
    try:
        deltas = await follow(log, model, version=older.snapshot.version, last_version=version)
    except NotPublishedError as error:
        notes.append(f"as published it cannot be had: {error}")
        return None, 0
    return model.weights_sha256(), deltas


def _kept_sha256(root: str, version: int, notes: list[str]) -> str | None:
    if version not in versions(root):
        notes.append("it has no snapshot of its own")
        return None
    try:
        own = _load(root, version).manifest
        if own.created_from == "base":
            notes.append("it is a base, made by training: there is no journal of it")
        return own.weights_sha256
    except TornSnapshotError as error:
        notes.append(f"its own snapshot is torn: {error}")
        return None
