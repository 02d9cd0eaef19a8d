"""The learner's snapshots: the one to start from, and those that are written beside the learning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from learners.deepfm.model import DeepFM
from learners.deepfm.model_state import ModelCopy, State
from learners.features.spec import FeatureSpec
from learners.snapshots.owner import FolderLock, check_stream
from learners.snapshots.snapshot import Snapshot, Written, newest_snapshot, write_snapshot
from stream.agents.store_health import StoreHealth
from stream.kafka.admin import cluster_id
from stream.kafka.broker import Broker
from stream.kafka.log_reader import LogReader
from stream.learn.loop import LearningLoop
from stream.learn.restart_check import check_restart
from stream.learn.state import LoopState
from stream.records.topics import JOURNAL
from stream.records.wire import SnapshotNotice

_COPY_BYTES = 8 << 20  # between two learning steps: some 30 ms, most of them for fresh memory


class NoSnapshotError(RuntimeError):
    """There is no snapshot to start from."""


def first_snapshot(root: str, spec: FeatureSpec) -> Snapshot:
    """The newest snapshot under ``root`` that a learner can go on from. Raises NoSnapshotError, SnapshotSpecError."""
    try:
        found = newest_snapshot(root, spec_hash=spec.hash, check=partial(check_restart, spec=spec))
    except OSError as error:
        raise NoSnapshotError(
            f"{root} cannot be read ({error}): there is no model to learn on. Give --snapshots a folder that this user "
            "may read."
        ) from error
    if found is None:
        raise NoSnapshotError(
            f"{root} holds no snapshot that is whole and sound (warnings name what was skipped): there is no model to "
            f"learn on. Train a base first: python -m learners base --spec {spec.name} --examples FILE.parquet "
            f"--out {root}"
        )
    return found[1]


async def unreachable(log: LogReader, root: str, snapshot: int, version: int, published: int) -> NoSnapshotError:
    """Why the learner cannot go on: ``snapshot`` and the journal lead to ``version``, and a later one was published."""
    oldest = await log.oldest(JOURNAL, 0)
    return NoSnapshotError(
        f"version {published} was published, but snapshot {snapshot} and the journal ({JOURNAL}[0] from offset "
        f"{oldest} on) lead to {version} only: its weights cannot be made again. Give --snapshots the folder of this "
        f"stream, not {root}; if retention took the journal, train a new base (python -m learners base --out) and keep "
        "the topic for longer (retention.ms)."
    )


def notice_of(spec: FeatureSpec, state: LoopState, written: Written) -> SnapshotNotice:
    """What tells serving of a snapshot."""
    return SnapshotNotice(
        spec_hash=spec.hash,
        version=state.version,
        url=written.url,
        sha256=written.sha256,
        watermark_ms=state.watermark_ms,
    )


async def copied(copy: ModelCopy) -> State:
    """The state of a model's copy that was just begun, a piece between two learning steps."""
    while not copy.step(_COPY_BYTES):
        await asyncio.sleep(0)
    return await asyncio.to_thread(copy.state)


class LearnSnapshots:
    """Writes one snapshot at a time, of the state at which it began, while the learning goes on.

    One that cannot be written is logged and counted, and is no failure: the log holds what it would have.

    Parameters
    ----------
    root : directory or URL of the snapshots.
    health : of that folder.
    on_written : awaited once one is written, with the state of the loop that it holds.
    """

    def __init__(
        self, root: str, health: StoreHealth, on_written: Callable[[LoopState, Written], Awaitable[None]]
    ) -> None:
        self.version = -1  # the newest one, written or loaded
        self.calibration: bytes | None = None  # that the line brought
        self._root = root
        self._health = health
        self._on_written = on_written
        self._stream = ""  # whose snapshots they are
        self._lock: FolderLock | None = None
        self._line = 0
        self._task: asyncio.Task[None] | None = None

    async def take_folder(self, broker: Broker, *, embedded: bool, adopt: bool) -> None:
        """Make sure that no other stream's learner writes into the folder; ``adopt`` takes over what one has written.

        A stream is a cluster and a prefix of topics; with an embedded broker its log ends with the process.
        Raises ForeignFolderError.
        """
        cluster = "" if embedded else await cluster_id(broker.bootstrap, broker.options)
        self._stream = f"{cluster or 'embedded'}/{broker.prefix}"
        if not adopt:
            await asyncio.to_thread(check_stream, self._root, self._stream)
        if self._lock is None:
            owner = self._stream if cluster else f"{self._stream} at {broker.bootstrap}"
            self._lock = await asyncio.to_thread(FolderLock.take, self._root, owner)

    def release_folder(self) -> None:
        """Let another stream have it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def go_on_from(self, snapshot: Snapshot) -> None:
        """What is written from now on is of this snapshot's line."""
        self.version, self._line, self.calibration = snapshot.version, snapshot.line, snapshot.calibration

    def is_due(self, loop: LearningLoop) -> bool:
        """Whether one is to be begun now: at the loop's intervals, and some time after one that failed."""
        due = loop.snapshot_due() or (self._health.failing and loop.whole)
        return due and self._task is None and self._health.may_write

    def begin(self, model: DeepFM, state: LoopState) -> None:
        """Hold on to the state as it is now; copy and write it beside the learning."""
        self._task = asyncio.create_task(self._write(model, state, model.begin_snapshot()))

    async def end_if_done(self) -> None:
        """Raise what ended one, unless it was the folder."""
        if self._task is not None and self._task.done():
            await self.end()

    async def end(self) -> None:
        """Wait for the one that is under way. Raises what ended it, unless it was the folder."""
        task, self._task = self._task, None
        if task is not None:
            await task

    async def written(self) -> None:
        """Wait for the one that is under way, whatever comes of it."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _write(self, model: DeepFM, at: LoopState, copy: ModelCopy) -> None:
        """Write the state as it was, with that of the loop, and what its line brought; then say so."""
        line, calibration, stream = self._line, self.calibration, self._stream

        def snapshot_of(state: State) -> Snapshot:
            return Snapshot(
                version=at.version,
                created_from="stream",
                watermark_ms=at.watermark_ms,
                newest_event_ms=at.newest_event_ms,
                shape=model.shape,
                config=model.config,
                state={**state, **at.to_arrays()},
                offsets={partition: position[0] for partition, position in at.positions.items()},
                line=line,
                stream=stream,
                calibration=calibration,
            )

        taken = await copied(copy)
        try:
            written = await asyncio.to_thread(lambda: write_snapshot(self._root, snapshot_of(taken)))
        except Exception as error:  # noqa: BLE001 - of any store's client; whatever it is, learning goes on
            self._health.failed(error)
            return
        self._health.wrote()
        self.version = at.version
        await self._on_written(at, written)
