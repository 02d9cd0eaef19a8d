"""The runners of a worker's agents, made out of what they share, and what must be there for them."""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial

from redis.asyncio import Redis

from learners.snapshots.snapshot import newest_line
from stream.agents.inbox import Runner
from stream.archive.runner import ArchiveRunner
from stream.archive.store import archive_store_of
from stream.calibrate.runner import CalibrateRunner
from stream.clicks.store import RedisClickStore
from stream.join.runner import JoinRunner
from stream.join.warm_up import load_join_kernels
from stream.kafka.broker import Broker
from stream.kafka.log_writer import LogWriter
from stream.metrics import WorkerMetrics
from stream.sessions.runner import SessionRunner
from stream.sessions.store import RedisSessionStore
from stream.worker.options import WorkerOptions, WorkerStartError
from stream.worker.settings import WorkerSettings


class WorkerRunners:
    """Makes the runners out of what they share."""

    def __init__(
        self,
        broker: Broker,
        writer: LogWriter,
        metrics: WorkerMetrics,
        options: WorkerOptions,
        intervals: WorkerSettings,
    ) -> None:
        self._broker, self._writer, self._metrics = broker, writer, metrics
        self._options, self._intervals = options, intervals

    def join(self, redis: Redis) -> Runner:
        """The join, whose kernels are loaded meanwhile."""
        config = self._intervals.join()
        return JoinRunner(
            self._broker,
            RedisClickStore(redis, self._options.spec, config.conversion_horizon_s),
            self._options.spec,
            config,
            self._metrics,
            _wall_clock_ms if self._options.clock == "wall" else None,
            salt=secrets.randbits(64),
            most_unlearned_rows=self._intervals.most_unlearned_rows,
            ready=asyncio.create_task(asyncio.to_thread(load_join_kernels)),  # while the group is joined
        )

    def sessions(self, redis: Redis) -> Runner:
        """The session features."""
        store = RedisSessionStore(redis, self._options.spec, self._broker.partitions)
        return SessionRunner(self._broker, store, self._options.spec, self._metrics)

    def learn(self, *, fresh_log: bool) -> Runner:
        """The learner."""
        from stream.learn.runner import LearnRunner  # and torch with it: only who learns waits for that

        return LearnRunner(
            self._broker,
            self._options.spec,
            self._intervals.learning(self._options.clock),
            self._options.snapshots,
            self._metrics,
            wall_s=time.monotonic if self._options.clock == "wall" else None,
            now_ms=_wall_clock_ms if self._options.clock == "wall" else lambda: 1 << 62,
            fresh_log=fresh_log,
        )

    def calibrate(self) -> Runner:
        """The calibrator."""
        interval_s = self._intervals.calibration_interval_s(self._options.clock)
        return CalibrateRunner(
            self._broker,
            self._writer,
            self._options.spec,
            self._intervals.calibrator(),
            interval_s,
            self._metrics,
            partial(newest_line, self._options.snapshots),
        )

    def archive(self) -> Runner:
        """The archiver."""
        store = archive_store_of(self._options.archive or "")
        return ArchiveRunner(self._broker, self._options.spec, self._intervals.archive(), store, self._metrics)


def check_snapshot(options: WorkerOptions) -> None:
    """Raise WorkerStartError when there is no snapshot to learn on."""
    from learners.snapshots.manifest import SnapshotError
    from stream.learn.snapshots import NoSnapshotError, first_snapshot

    try:
        first_snapshot(options.snapshots, options.spec)
    except (NoSnapshotError, SnapshotError) as error:
        raise WorkerStartError(str(error)) from error


def refuse_other_log(archive: str) -> None:
    """Raise WorkerStartError when an archive is of another log than one that begins now."""
    if archived := archive_store_of(archive).up_to():
        raise WorkerStartError(
            f"{archive} holds offsets up to {max(archived.values())} of another log than the embedded broker's, which "
            "begins at 0: its examples would be taken for archived. Set KAFKA_BOOTSTRAP_SERVERS to the broker that the "
            "archive is of, or give an empty folder."
        )


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000
