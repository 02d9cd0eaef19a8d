"""The life of a worker process: servers, topics, agents, metrics; a clean stop; the exit code.

A stop (SIGTERM, SIGINT) takes nothing more in, works off what was read, publishes, takes a snapshot and commits; one
that comes during the start ends the start. Any failure of an agent ends the process with exit code 1, without a commit:
a supervisor starts it again and it resumes from the log.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from aiokafka.coordinator.assignors.range import RangePartitionAssignor  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, disable_created_metrics
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from learners.snapshot import newest_line
from learners.spec import FeatureSpec
from stream.admin import BrokerUnreachableError, TopicMismatchError, ensure_topics
from stream.agent import Agent
from stream.archive_runner import ArchiveRunner
from stream.archive_store import archive_store_of
from stream.broker import Broker, find_broker
from stream.calibrate_runner import CalibrateRunner
from stream.child_server import ServerStartError
from stream.click_store import RedisClickStore
from stream.embedded_broker import EmbeddedBroker
from stream.embedded_redis import EmbeddedRedis, answers_ping
from stream.examples_log import SettledLogError
from stream.health import HealthServer
from stream.inbox import Runner
from stream.join_runner import JoinRunner
from stream.join_warm_up import load_join_kernels
from stream.log_writer import LogWriter, shared_writer
from stream.metrics import WorkerMetrics
from stream.session_runner import SessionRunner
from stream.session_store import RedisSessionStore
from stream.settings import StreamSettings, kafka_client_options, redis_client_options, without_password
from stream.single_owner import SingleOwnerAssignor
from stream.source import SourceKind
from stream.worker_settings import Clock, WorkerSettings

AGENTS = ("join", "sessions", "learn", "calibrate", "archive")
STOP_LIMIT_S = 9.0  # supervisors send SIGKILL after 10
_LEAVE_LIMIT_S = 3.0

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class WorkerStartError(RuntimeError):
    """Something that the worker needs is missing; the message names the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What one worker process runs."""

    spec: FeatureSpec
    snapshots: str
    archive: str | None = None  # where the archiver writes; None: it does not run
    agents: Sequence[str] = AGENTS
    clock: Clock = "wall"
    runner: SourceKind = "faust"
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # None: no port is opened


async def run_worker(options: WorkerOptions, settings: StreamSettings, intervals: WorkerSettings) -> int:
    """Run until a signal or a failure; the process's exit code.

    Raises
    ------
    WorkerStartError
        The broker, Redis, a port or a snapshot is missing, or does not fit.
    """
    stop = asyncio.Event()
    failures: list[BaseException] = []

    def begin_stop() -> None:
        if not stop.is_set():
            _start_watchdog()
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, begin_stop)

    def failed(error: BaseException) -> None:
        _say(error, failures)
        failures.append(error)
        begin_stop()

    async with AsyncExitStack() as stack:
        try:
            starting = await _unless(stop, _prepare(stack, options, settings, intervals, failed))
            if starting is not None:
                await _unless(stop, asyncio.gather(*(agent.start() for agent in starting.agents)))
        except (
            BrokerUnreachableError,
            ServerStartError,
            TopicMismatchError,
            ValueError,
        ) as error:
            raise WorkerStartError(str(error)) from error
        if starting is not None and not stop.is_set():
            starting.health.ready = True
            _log.info("worker ready", agents=list(options.agents), spec=options.spec.name, clock=options.clock)
        await stop.wait()
        in_order = starting is not None and await _stop(starting, abandon=bool(failures))
    status = 1 if failures else 0
    if not in_order:
        os._exit(status)  # threads would be waited for: of the Kafka clients, or one that still imports the learner
    return status


def _say(error: BaseException, before: Sequence[BaseException]) -> None:
    """Log why the worker stops; a log that is refused once, although every agent that reads it meets it."""
    if not isinstance(error, SettledLogError):
        _log.error("an agent failed; the worker stops without committing", exc_info=error)
    elif not any(isinstance(one, SettledLogError) for one in before):
        _log.error("the log of examples is refused; the worker stops", reason=str(error))


@dataclass(frozen=True, slots=True)
class _Prepared:
    health: HealthServer
    agents: Sequence[Agent]


async def _stop(running: _Prepared, *, abandon: bool) -> bool:
    """Work off and store what was taken, then leave; whether all groups were left in time."""
    running.health.ready = False
    for agent in running.agents:  # in the order of the stream: a later one may still see what an earlier one wrote last
        await (agent.abandon() if abandon else agent.finish())
    leaving = [asyncio.create_task(agent.leave()) for agent in running.agents]
    left, held_up = await asyncio.wait(leaving, timeout=_LEAVE_LIMIT_S)
    for task in left:
        task.result()
    if held_up:  # by a rebalance that waits for a silent member
        _log.warning("not every group could be left in time; they will find out", limit_s=_LEAVE_LIMIT_S)
    return not held_up


async def _unless(stop: asyncio.Event, work: Awaitable[_T]) -> _T | None:
    """What comes of the work; None, and it is cancelled, when the stop comes before its end."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _prepare(
    stack: AsyncExitStack,
    options: WorkerOptions,
    settings: StreamSettings,
    intervals: WorkerSettings,
    failed: Callable[[BaseException], None],
) -> _Prepared:
    """Everything up to agents that could start; ``stack`` stops the servers."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a sample a counter that nobody reads
    registry = CollectorRegistry()
    health = HealthServer(registry)
    if options.metrics_port is not None:
        await health.start(options.metrics_host, options.metrics_port)
        stack.push_async_callback(health.stop)
    if "learn" in options.agents:  # before anything is started: the usual thing to forget
        await asyncio.to_thread(_check_snapshot, options)
    fresh_log = settings.kafka_bootstrap_servers is None
    agents = [name for name in AGENTS if name in options.agents and (name != "archive" or options.archive)]
    if fresh_log and "archive" in agents:
        await asyncio.to_thread(_refuse_other_log, options.archive or "")
    settings = await stack.enter_async_context(_servers(settings))
    await ensure_topics(settings.kafka_bootstrap_servers or "", settings.topics(), kafka_client_options(settings))
    broker = await find_broker(settings)
    if not broker.idempotent:
        _log.warning("this broker has no transactions: one worker must own all partitions, start no second one")
    writer = await stack.enter_async_context(shared_writer(broker))
    redis = redis_client(stack, settings)
    metrics = WorkerMetrics(registry)
    parts = _Parts(broker, writer, metrics, options, intervals)
    runners = {
        "join": lambda: parts.join(redis),
        "sessions": lambda: parts.sessions(redis),
        "learn": lambda: parts.learn(fresh_log=fresh_log),
        "calibrate": parts.calibrate,
        "archive": parts.archive,
    }
    apps = [
        Agent(
            name,
            broker,
            runners[name](),
            failed,
            metrics,
            assignor=SingleOwnerAssignor if name == "learn" else RangePartitionAssignor,
            source=options.runner,
        )
        for name in agents
    ]
    return _Prepared(health, apps)


class _Parts:
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
        store = RedisSessionStore(redis, self._options.spec, self._broker.partitions)
        return SessionRunner(self._broker, store, self._options.spec, self._metrics)

    def learn(self, *, fresh_log: bool) -> Runner:
        from stream.learn_runner import LearnRunner  # and torch with it: only who learns waits for that

        return LearnRunner(
            self._broker,
            self._options.spec,
            self._intervals.learning(self._options.clock),
            self._options.snapshots,
            self._metrics,
            wall_s=time.monotonic if self._options.clock == "wall" else None,
            fresh_log=fresh_log,
        )

    def calibrate(self) -> Runner:
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
        store = archive_store_of(self._options.archive or "")
        return ArchiveRunner(self._broker, self._options.spec, self._intervals.archive(), store, self._metrics)


def _check_snapshot(options: WorkerOptions) -> None:
    from learners.snapshot import SnapshotError
    from stream.learn_runner import NoSnapshotError, first_snapshot

    try:
        first_snapshot(options.snapshots, options.spec)
    except (NoSnapshotError, SnapshotError) as error:
        raise WorkerStartError(str(error)) from error


def _refuse_other_log(archive: str) -> None:
    if held := archive_store_of(archive).up_to():
        raise WorkerStartError(
            f"{archive} holds offsets up to {max(held.values())} of another log than the embedded broker's, which "
            "begins at 0: its examples would be taken for archived. Set KAFKA_BOOTSTRAP_SERVERS to the broker that the "
            "archive is of, or give an empty folder."
        )


@asynccontextmanager
async def _servers(settings: StreamSettings) -> AsyncIterator[StreamSettings]:
    """The given broker and Redis, or embedded ones whose addresses are said on stderr."""
    async with AsyncExitStack() as stack:
        bootstrap, redis_url = settings.kafka_bootstrap_servers, settings.redis_url
        if bootstrap is None:
            bootstrap = (await stack.enter_async_context(EmbeddedBroker())).bootstrap
            _log.info("embedded broker started", KAFKA_BOOTSTRAP_SERVERS=bootstrap)
        if redis_url is None:
            redis_url = (await stack.enter_async_context(EmbeddedRedis())).url
            _log.info("embedded Redis started", REDIS_URL=redis_url)
        elif not await answers_ping(redis_url, redis_client_options(settings)):
            raise ServerStartError(
                f"no Redis answered at {without_password(redis_url)}: session features could be neither read nor kept. "
                "Check REDIS_URL and that it runs, or unset it to use the embedded one."
            )
        yield settings.model_copy(update={"kafka_bootstrap_servers": bootstrap, "redis_url": redis_url})


def redis_client(stack: AsyncExitStack, settings: StreamSettings) -> Redis:
    """A client of the Redis of the settings, closed by ``stack``.

    It fails at once: who asks knows what to do without an answer, and when to ask again (`stream.outage`).
    """
    at_once = Retry(NoBackoff(), 0)
    client: Redis = Redis.from_url(settings.redis_url or "", retry=at_once, **redis_client_options(settings))
    stack.push_async_callback(client.aclose)
    return client


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _start_watchdog() -> None:
    """End the process when its stop hangs, as it does when the broker is gone: the log holds all a restart needs.

    A thread, because neither a blocked event loop nor the threads of the Kafka clients may hold it up.
    """

    def cut_off() -> None:
        _log.error("the stop took too long and was cut off; the next start resumes from the log", limit_s=STOP_LIMIT_S)
        os._exit(1)

    watchdog = threading.Timer(STOP_LIMIT_S, cut_off)
    watchdog.daemon = True
    watchdog.start()
