"""Broker, Redis, workers and serving as processes; the broker's clients among them go through a proxy."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import aiohttp

from stream.agents.source import SourceKind
from stream.embedded.broker import EmbeddedBroker
from stream.embedded.process import LOOPBACK
from stream.embedded.redis import answers_ping
from stream.join.config import JoinConfig
from stream.kafka.admin import ensure_topics
from stream.servers.settings import StreamSettings
from stream.worker.settings import WorkerSettings
from tests.chaos.kafka_cluster import REPLICAS, KafkaCluster
from tests.chaos.lasting_redis import LastingRedis
from tests.chaos.ports import lasting_ports
from tests.chaos.program import ROOT, Program
from tests.chaos.proxy import Proxy
from tests.stream.pipeline import SPEC, START_MS, base_snapshot

BrokerKind = Literal["kafka", "embedded"]
SESSION_TIMEOUT_S = 3.0
CALIBRATE_INTERVAL_S = 300.0  # a state takes 33 kB, and a starting worker reads all of them
JOIN = JoinConfig(
    click_window_s=60,
    display_horizon_s=60,
    click_horizon_s=600,
    conversion_horizon_s=3600,
    allowed_lateness_s=20,
)
HORIZONS = (
    "click_window", "display_horizon", "click_horizon", "conversion_horizon", "allowed_lateness", "display_lead",
)  # fmt: skip
CALIBRATOR = WorkerSettings.model_validate(
    {f"{name}_s": float(getattr(JOIN, f"{name}_s")) for name in HORIZONS}
).calibrator()
_LEARNING = {"LEARN_BATCH_ROWS": 64, "LEARN_INTERVAL_S": 30, "SNAPSHOT_INTERVAL_S": 600, "ARCHIVE_INTERVAL_S": 600}
_READY_TIMEOUT_S = 180.0
_LOOK_EVERY_S = 0.25


class NotReadyError(RuntimeError):
    """The programs did not come up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What runs; ``root`` is the tree of the programs' code."""

    broker: BrokerKind
    partitions: int
    work_dir: Path
    runner: SourceKind = "faust"
    brokers: int = 1
    root: Path = ROOT

    @property
    def workers(self) -> int:
        """How many; the embedded broker has no transactions, so that one must own all partitions."""
        return 2 if self.broker == "kafka" else 1


class Cluster:
    """`async with Cluster(options) as cluster`: everything is ready; all is stopped at the end, come what may."""

    def __init__(self, options: ClusterOptions) -> None:
        self.options = options
        self.snapshots = options.work_dir / "snapshots"
        self.archive = options.work_dir / "archive"
        self.logs = options.work_dir / "logs"
        self._ports = iter(lasting_ports(9 + 7 * options.brokers))
        proxy_port, proxied_port = next(self._ports), next(self._ports)
        self.embedded = EmbeddedBroker(proxied_port, options.work_dir / "broker", advertised_port=proxy_port)
        self.kafka: KafkaCluster | None = None
        self.proxies = [Proxy(proxy_port, proxied_port)]  # to each broker
        if options.broker == "kafka":
            home, data_dir = Path(os.environ["KAFKA_HOME"]), options.work_dir / "broker"
            self.kafka = KafkaCluster(home, data_dir, self._ports, options.brokers)
            self.proxies = [node.clients for node in self.kafka.nodes]
        redis_port = next(self._ports)
        self.redis = LastingRedis(redis_port, options.work_dir / "redis")
        self.redis_proxy = Proxy(next(self._ports), redis_port)
        serving_port = next(self._ports)
        self.serving_url = f"http://{LOOPBACK}:{serving_port}"
        self.serving = self._program(
            "serving", ["serving", "--port", str(serving_port)], f"{self.serving_url}/readyz", archives=False
        )
        self.workers = [self._worker(number, next(self._ports)) for number in range(1, options.workers + 1)]
        self._stack = AsyncExitStack()

    @property
    def programs(self) -> list[Program]:
        """The workers and serving."""
        return [*self.workers, self.serving]

    @property
    def is_kafka(self) -> bool:
        """Whether the broker has transactions and outlives a kill."""
        return self.kafka is not None

    @property
    def settings(self) -> StreamSettings:
        """For clients that are no part of what is tested: past the proxies, where the broker can tell them apart."""
        return StreamSettings(
            kafka_bootstrap_servers=self._proxied_bootstrap if self.kafka is None else self.kafka.bootstrap,
            redis_url=self.redis.url,
            partitions=self.options.partitions,
            replication_factor=self._replicas,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        base_snapshot(self.snapshots, watermark_ms=START_MS)  # of the stream's day, so that it is kept
        await self._stack.enter_async_context(self.redis_proxy)
        if self.kafka is None:
            await self._stack.enter_async_context(self.proxies[0])
        broker = self.kafka or self.embedded
        self._stack.push_async_callback(broker.stop)
        self._stack.push_async_callback(self.redis.stop)
        await asyncio.gather(broker.start(), self.redis.start())
        settings = self.settings
        await ensure_topics(settings.kafka_bootstrap_servers or "", settings.topics())
        for program in self.programs:
            self._stack.push_async_callback(program.end)
            await program.start()
        await self.until_ready()

    async def until_ready(self) -> None:
        """Until every program, the broker and Redis work. Raises NotReadyError."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        async with aiohttp.ClientSession() as http:
            while missing := await self._not_ready(http):
                if time.monotonic() > deadline:
                    raise NotReadyError(
                        f"{', '.join(missing)} did not work within {_READY_TIMEOUT_S:g} s: nothing can be shown any "
                        f"more. Look at the logs in {self.logs}."
                    )
                await asyncio.sleep(_LOOK_EVERY_S)

    async def stop_programs(self) -> dict[str, int]:
        """SIGTERM to each program; their exit statuses."""
        statuses = await asyncio.gather(*(program.stop() for program in self.programs))
        return {program.name: status for program, status in zip(self.programs, statuses, strict=True)}

    async def _not_ready(self, http: aiohttp.ClientSession) -> list[str]:
        answers = await asyncio.gather(*(program.is_ready(http) for program in self.programs))
        missing = [program.name for program, ready in zip(self.programs, answers, strict=True) if not ready]
        if any(proxy.is_cut for proxy in self.proxies):
            missing.append("the way to the broker")
        if not await answers_ping(self.redis.url):
            missing.append("Redis")
        return missing

    @property
    def _proxied_bootstrap(self) -> str:
        return ",".join(f"{LOOPBACK}:{proxy.port}" for proxy in self.proxies)

    @property
    def _replicas(self) -> int:
        return min(REPLICAS, self.options.brokers)

    def _worker(self, number: int, metrics_port: int) -> Program:
        arguments = ["stream", "worker", "--metrics-port", str(metrics_port), "--runner", self.options.runner]
        name = f"worker {number}"
        return self._program(name, arguments, f"http://{LOOPBACK}:{metrics_port}/healthz", archives=True)

    def _program(self, name: str, arguments: Sequence[str], ready_url: str, *, archives: bool) -> Program:
        common = ["--spec", SPEC.name, "--snapshots", str(self.snapshots), "--clock", "log"]
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": self._proxied_bootstrap,
            "KAFKA_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
            "REDIS_URL": f"redis://{LOOPBACK}:{self.redis_proxy.port}/0",
            "MILLSTREAM_PARTITIONS": str(self.options.partitions),
            "MILLSTREAM_REPLICATION_FACTOR": str(self._replicas),
            "MILLSTREAM_CALIBRATE_INTERVAL_S": str(CALIBRATE_INTERVAL_S),
            "OMP_NUM_THREADS": "1",
        }
        for setting in HORIZONS:
            environment[f"MILLSTREAM_{setting.upper()}_S"] = str(getattr(JOIN, f"{setting}_s"))
        environment |= {f"MILLSTREAM_{setting}": str(value) for setting, value in _LEARNING.items()}
        if archives:
            environment["MILLSTREAM_ARCHIVE"] = str(self.archive)
        log = self.logs / f"{name.replace(' ', '-')}.log"
        return Program(name, [*arguments, *common], environment, log, ready_url, self.options.root)
