"""The life of a worker process: servers, topics, agents, metrics; a clean stop; the exit code.

A stop (SIGTERM, SIGINT, SIGHUP) takes nothing more in, works off what was read, publishes, takes a snapshot and
commits; one that comes during the start ends the start. Any failure of an agent ends the process with exit code 1,
without a commit: a supervisor starts it again and it resumes from the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import structlog
from aiokafka.coordinator.assignors.range import RangePartitionAssignor  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, disable_created_metrics

from stream.agents.agent import Agent
from stream.agents.single_owner import SingleOwnerAssignor
from stream.embedded.process import ServerStartError
from stream.kafka.admin import BrokerUnreachableError, TopicMismatchError, ensure_topics, topic_settings
from stream.kafka.broker import find_broker
from stream.kafka.client_options import kafka_client_options
from stream.kafka.log_writer import RecordRefusedError, shared_writer
from stream.kafka.topic_settings import warn_of_unfit
from stream.metrics import WorkerMetrics
from stream.records.examples_codec import SettledLogError
from stream.servers.settings import StreamSettings
from stream.worker.health import HealthServer
from stream.worker.options import AGENTS, WorkerOptions, WorkerStartError
from stream.worker.runners import WorkerRunners, check_snapshot, refuse_other_log
from stream.worker.servers import redis_client, servers
from stream.worker.settings import WorkerSettings
from stream.worker.upstreams import Upstreams

STOP_LIMIT_S = 9.0  # supervisors send SIGKILL after 10
_LEAVE_LIMIT_S = 3.0

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


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

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, begin_stop)

    def failed(error: BaseException) -> None:
        _log_failure(error, failures)
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


def _log_failure(error: BaseException, before: Sequence[BaseException]) -> None:
    """Log why the worker stops; a log that is refused once, although every agent that reads it meets it."""
    if isinstance(error, RecordRefusedError):
        _log.error("the broker refuses a record; the worker stops without committing", reason=str(error))
    elif not isinstance(error, SettledLogError):
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
    for agent in running.agents:  # the order of the stream: a later one may still see what an earlier one wrote last
        await (agent.abandon() if abandon else agent.finish())
    leaving = [asyncio.create_task(agent.leave()) for agent in running.agents]
    left, late = await asyncio.wait(leaving, timeout=_LEAVE_LIMIT_S)
    for task in left:
        task.result()
    if late:  # a rebalance waits for a silent member
        _log.warning("not every group could be left in time; they will find out", limit_s=_LEAVE_LIMIT_S)
    return not late


async def _unless(stop: asyncio.Event, work: Awaitable[_T]) -> _T | None:
    """The result of the work; None, and it is cancelled, when the stop comes before its end."""
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
        await asyncio.to_thread(check_snapshot, options)
    fresh_log = settings.kafka_bootstrap_servers is None
    agents = [name for name in AGENTS if name in options.agents and (name != "archive" or options.archive)]
    if fresh_log and "archive" in agents:
        await asyncio.to_thread(refuse_other_log, options.archive or "")
    settings = await stack.enter_async_context(servers(settings))
    kafka = settings.kafka_bootstrap_servers or "", settings.topics(), kafka_client_options(settings)
    await ensure_topics(*kafka)
    warn_of_unfit(settings.topics(), await topic_settings(*kafka))
    broker = await find_broker(settings)
    if not broker.idempotent:
        _log.warning("this broker has no transactions: one worker must own all partitions, start no second one")
    writer = await stack.enter_async_context(shared_writer(broker))
    redis = redis_client(stack, settings)
    metrics = WorkerMetrics(registry)
    health.degraded = metrics.degraded
    _watch_upstreams(stack, Upstreams(broker, redis, metrics.degraded))
    parts = WorkerRunners(broker, writer, metrics, options, intervals)
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


def _watch_upstreams(stack: AsyncExitStack, upstreams: Upstreams) -> None:
    """In a task of its own that ``stack`` ends."""
    watching = asyncio.create_task(upstreams.watch())

    async def end() -> None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    stack.push_async_callback(end)


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
