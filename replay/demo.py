"""The whole loop on one machine: base model, broker, Redis, worker, serving, player, summary; and everything stopped.

base days ──► examples.parquet ──► python -m learners base ──► snapshot ─┐
    └───────► session features ──► Redis                                  ▼
player ──► serving ──► Kafka ──► python -m stream worker ──► weights ──► serving
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from learners.features.spec import load_spec
from learners.snapshots.snapshot import newest_snapshot
from replay.backtest import BacktestOptions, collect_base
from replay.base import SESSIONS_FILE, write_base
from replay.errors import PlaybackError
from replay.live import play_and_report
from replay.player import PlayerOptions
from replay.progress import Progress
from replay.report import Report
from replay.scenario import Scenario
from stream.embedded.broker import EmbeddedBroker
from stream.embedded.process import LOOPBACK, ChildServer, claim_port
from stream.embedded.redis import EmbeddedRedis
from stream.kafka.admin import ensure_topics
from stream.kafka.client_options import kafka_client_options
from stream.records.topics import topic_table
from stream.servers.settings import StreamSettings

START_TIMEOUT_S = 60.0
DEMO_PARTITIONS = 1  # one worker owns them all, so that more of them only cost
STOP_GRACE_S = 12.0  # the programs promise 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo runs on and for how long."""

    base_days: int
    online_days: int
    work_dir: Path
    port: int | None = None  # of the live page; None: a free one
    partitions: int = DEMO_PARTITIONS


async def run(scenario: Scenario, options: DemoOptions, player: PlayerOptions, progress: Progress) -> Report:
    """Run the demo and return what it measured; every server and program it started is stopped again.

    Raises
    ------
    ServerStartError, PlaybackError
        Naming the program, the end of its log and where the whole log lies.
    """
    days = scenario.days()
    base_span = days.span_ms(0, options.base_days)
    online_span = days.span_ms(options.base_days, options.online_days)
    snapshots, logs = options.work_dir / "snapshots", options.work_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    port = claim_port(options.port, "serving", "choose another with --port")

    common = ["--spec", scenario.spec_name, "--snapshots", str(snapshots), "--clock", "log"]

    sessions_file = options.work_dir / SESSIONS_FILE
    await _make_base(scenario, base_span, snapshots, options.work_dir, progress)

    newest = newest_snapshot(str(snapshots))
    if newest is None:
        raise PlaybackError(f"{snapshots} holds no snapshot although base training succeeded: is the disk full?")
    frozen = newest[1].model()

    async with AsyncExitStack() as stack:
        settings = await _servers(stack, options, progress)
        environment = _environment(settings, scenario)
        await _finish(["stream", "sessions", "load", str(sessions_file), *common[:2]], environment)
        metrics_port = claim_port(None, "the worker", "stop it")
        await _programs(
            stack,
            environment,
            [
                ("the stream worker", ["stream", "worker", *common, "--metrics-port", str(metrics_port)],
                 logs / "worker.log", f"http://{LOOPBACK}:{metrics_port}/healthz"),
                ("serving", ["serving", *common, "--port", str(port)],
                 logs / "serving.log", f"http://{LOOPBACK}:{port}/readyz"),
            ],
        )  # fmt: skip
        progress.say(f"live page: http://{LOOPBACK}:{port}/   logs: {logs}")
        return await play_and_report(
            scenario, online_span, settings, f"http://{LOOPBACK}:{port}", frozen, player, progress
        )


async def _make_base(
    scenario: Scenario, span_ms: tuple[int, int], snapshots: Path, work_dir: Path, progress: Progress
) -> None:
    spec = load_spec(scenario.spec_name)
    with progress.counting("base days", scenario.count(*span_ms)) as advance:
        base = collect_base(scenario, spec, span_ms, advance)
    archive, _ = write_base(base, spec, work_dir)
    progress.say(f"base model from {len(base.examples):,} examples")
    model = work_dir / "model.toml"
    model.write_text(_model_settings(scenario))
    files = ["--examples", str(archive), "--out", str(snapshots), "--model", str(model)]
    window = ["--click-window-s", str(scenario.click_window_s)]
    await _finish(["learners", "base", "--spec", scenario.spec_name, *files, *window], {})


def _model_settings(scenario: Scenario) -> str:
    """The TOML of a model with the scenario's heads, each but the first given the one before it."""
    first, *others = scenario.head_names
    given = zip(others, scenario.head_names, strict=False)
    heads = [f'{{ name = "{first}" }}', *(f'{{ name = "{name}", given = "{before}" }}' for name, before in given)]
    return f"heads = [{', '.join(heads)}]\n"


async def _servers(stack: AsyncExitStack, options: DemoOptions, progress: Progress) -> StreamSettings:
    """The broker and Redis of the environment, or embedded ones; topics created."""
    given = StreamSettings()
    bootstrap, redis_url = given.kafka_bootstrap_servers, given.redis_url
    if bootstrap is None:
        bootstrap = (await stack.enter_async_context(EmbeddedBroker())).bootstrap
        progress.say(f"embedded broker on {bootstrap}")
    if redis_url is None:
        redis_url = (await stack.enter_async_context(EmbeddedRedis())).url
        progress.say(f"embedded Redis on {redis_url}")
    settings = given.model_copy(
        update={"kafka_bootstrap_servers": bootstrap, "redis_url": redis_url, "partitions": options.partitions}
    )
    table = topic_table(settings.partitions, settings.replication_factor, prefix=settings.topic_prefix)
    await ensure_topics(bootstrap, table, kafka_client_options(settings))
    return settings


def _environment(settings: StreamSettings, scenario: Scenario) -> dict[str, str]:
    """What the started programs read instead of our own settings."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka_bootstrap_servers),
        "REDIS_URL": str(settings.redis_url),
        "MILLSTREAM_PARTITIONS": str(settings.partitions),
        "MILLSTREAM_CLICK_WINDOW_S": str(scenario.click_window_s),
        "MILLSTREAM_LEARN_INTERVAL_S": str(BacktestOptions().learn_interval_s),
        "OMP_NUM_THREADS": "1",
    }


async def _finish(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run one of our programs to its end; its progress goes to our stderr.

    Raises
    ------
    PlaybackError
        When it fails; it has said why.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.DEVNULL, env={**os.environ, **environment}
    )
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if status:
        raise PlaybackError(f"python -m {' '.join(arguments)} failed with exit status {status}; its error is above.")


async def _programs(
    stack: AsyncExitStack, environment: Mapping[str, str], wanted: Sequence[tuple[str, list[str], Path, str]]
) -> None:
    """Start long-running programs side by side and wait until each answers its URL; ``stack`` stops them."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:

        async def start(name: str, arguments: list[str], log: Path, url: str) -> None:
            child = ChildServer(name, log)
            stack.push_async_callback(child.stop, grace_s=STOP_GRACE_S)

            async def ready() -> bool:
                try:
                    async with http.get(url) as answer:
                        return answer.status == 200
                except (aiohttp.ClientError, TimeoutError):
                    return False

            await child.start(
                [sys.executable, "-m", *arguments], ready, timeout_s=START_TIMEOUT_S, environment=environment
            )

        await asyncio.gather(*(start(*program) for program in wanted))
