"""`python -m tests.chaos --kills N --seed S`: exit 0 when nothing was lost or doubled, 1 when something was."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stream.agents.source import SourceKind
from stream.embedded.process import ServerStartError
from stream.kafka.broker import find_broker
from tests.chaos.cluster import JOIN, BrokerKind, Cluster, ClusterOptions, NotReadyError
from tests.chaos.faults import Faults
from tests.chaos.findings import findings, of_stops
from tests.chaos.kafka_cluster import REPLICAS
from tests.chaos.kinds import kinds_of, setup_of
from tests.chaos.outcome import Outcome
from tests.chaos.progress import elapsed_s, say
from tests.chaos.report import all_hold, as_json, print_tables
from tests.chaos.settling import Settling
from tests.chaos.simulated_users import SimulatedUsers
from tests.chaos.stores import Stores
from tests.chaos.topic_log import TopicLog
from tests.chaos.traffic import Traffic, TrafficError
from tests.chaos.upgrade import Rolling, UpgradeError, export
from tests.chaos.verdict import Check
from tests.stream.pipeline import SPEC, START_MS

_QUIET_S = 10.0  # before the first fault and after the last one
_OURS = ("KAFKA_", "REDIS_", "MILLSTREAM_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a run."""

    kills: int
    within_s: float
    seed: int
    speed: float
    only: Sequence[str]
    cluster: ClusterOptions
    upgraded_from: str = ""  # what the commit is called whose tree is the cluster's


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    checks: list[Check]
    facts: dict[str, Any]


def main(
    kills: Annotated[int, typer.Option(min=0, help="How many faults hit the stream.")] = 20,
    within_s: Annotated[
        float, typer.Option(min=1, help="No fault comes later, however many were asked for.")
    ] = math.inf,
    seed: Annotated[int, typer.Option(help="Of the traffic, and of the faults and their moments.")] = 1,
    broker: Annotated[str, typer.Option(help="kafka or embedded; kafka where KAFKA_HOME is set.")] = "",
    brokers: Annotated[int, typer.Option(min=1, max=9, help="How many of Apache Kafka: 1, or 3 and more.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, help="Of the input topics.")] = 4,
    runner: Annotated[SourceKind, typer.Option(help="What reads the topics in the workers.")] = "faust",
    speed: Annotated[float, typer.Option(min=1, help="Event time over wall-clock time, at most.")] = 30.0,
    only: Annotated[list[str] | None, typer.Option(help="A kind of fault, as the result names it; repeatable.")] = None,
    upgrade_from: Annotated[
        str, typer.Option(help="A commit: its programs run first and are rolled to this tree; no other faults then.")
    ] = "",
    keep: Annotated[Path | None, typer.Option(help="Folder for logs and data; a temporary one by default.")] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Run the whole stream under faults, then prove from its log that nothing was lost, doubled or changed.

    A run whose checks hold leaves nothing behind unless --keep names a folder; the logs of any other stay.
    """
    kind = _broker_kind(broker)
    _check_brokers(kind, brokers)
    _check_kinds(only or [], kind, brokers)
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(
            f"--keep {keep} is not empty: what another run left there would count as this one's. Give a new folder."
        )
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that is away is what is asked for here
    for name in [name for name in os.environ if name.startswith(_OURS) and name != "KAFKA_HOME"]:
        del os.environ[name]
    work_dir = keep or Path(tempfile.mkdtemp(prefix="millstream-chaos-"))
    cluster = ClusterOptions(
        broker=kind, brokers=brokers, partitions=partitions, work_dir=work_dir.absolute(), runner=runner
    )
    options = Options(kills=kills, within_s=within_s, seed=seed, speed=speed, only=only or (), cluster=cluster)
    try:
        if upgrade_from:
            options = _from_commit(options, upgrade_from)
        result = asyncio.run(_run(options))
    except (NotReadyError, ServerStartError, TrafficError, UpgradeError) as error:
        typer.echo(f"error: {error}", err=True)
        typer.echo(f"everything is kept in {work_dir}", err=True)
        raise typer.Exit(1) from error
    if as_json_:
        typer.echo(as_json(result.checks, result.facts))
    else:
        print_tables(result.checks, result.facts)
    if not all_hold(result.checks):
        typer.echo(f"not everything holds; everything is kept in {work_dir}, the logs in {work_dir / 'logs'}", err=True)
        raise typer.Exit(1)
    if keep is None:
        shutil.rmtree(work_dir, ignore_errors=True)


def _broker_kind(asked: str) -> BrokerKind:
    if asked not in ("", "kafka", "embedded"):
        raise typer.BadParameter(f"--broker {asked} is neither kafka nor embedded: there is no other to start.")
    if asked == "kafka" and not os.environ.get("KAFKA_HOME"):
        raise typer.BadParameter(
            "--broker kafka needs KAFKA_HOME, the folder of an unpacked Apache Kafka: none can be started without it. "
            "Set it, or give --broker embedded."
        )
    if asked == "embedded" or not os.environ.get("KAFKA_HOME"):
        return "embedded"
    return "kafka"


def _check_brokers(broker: BrokerKind, brokers: int) -> None:
    if brokers > 1 and broker == "embedded":
        raise typer.BadParameter(
            f"--brokers {brokers}: the embedded broker keeps all in the memory of one process, so several are no "
            "cluster. Set KAFKA_HOME, the folder of an unpacked Apache Kafka."
        )
    if 1 < brokers < REPLICAS:
        raise typer.BadParameter(
            f"--brokers {brokers}: a record is on {REPLICAS} brokers, so that one of them can be away. Give "
            f"{REPLICAS} or more, or 1."
        )


def _check_kinds(only: Sequence[str], broker: BrokerKind, brokers: int) -> None:
    known = [kind.name for kind in kinds_of(setup_of(broker, brokers))]
    if unknown := [name for name in only if name not in known]:
        raise typer.BadParameter(
            f"--only {', '.join(unknown)}: no fault of {brokers} {broker} broker(s) is called so, nothing would "
            f"be hit. There are: {', '.join(known)}."
        )


def _from_commit(options: Options, commit: str) -> Options:
    """The same over the programs of an older commit, whose tree is put beside the data. Raises UpgradeError."""
    root = options.cluster.work_dir / "old" / "tree"
    called = export(commit, root)
    return replace(options, kills=0, upgraded_from=called, cluster=replace(options.cluster, root=root))


async def _run(options: Options) -> Result:
    async with Cluster(options.cluster) as cluster:
        brokers = f"{options.cluster.brokers} {options.cluster.broker} broker(s)"
        say(f"{brokers}, {len(cluster.workers)} workers and serving work: {cluster.logs}")
        faults = Faults(cluster, options.seed, options.only)
        broker = await find_broker(cluster.settings)
        log = TopicLog(broker)
        outcome, stores = Outcome(log), Stores(cluster.redis.url, SPEC)
        async with Traffic(cluster, SimulatedUsers(options.seed, JOIN, START_MS), options.speed) as traffic:
            rolling = Rolling(cluster)
            await _disturb(
                traffic, rolling.unleash() if options.upgraded_from else faults.unleash(options.kills, options.within_s)
            )
            say(f"{faults.counts.total()} faults, {traffic.requests:,} requests: waiting until everything is settled")
            await Settling(traffic, log, outcome, stores, options.cluster.partitions).settle()
        await cluster.until_ready()  # a program that ended late in the run is among those that are stopped
        statuses = await cluster.stop_programs()
        checks = await findings(log, outcome, cluster.settings, cluster.snapshots, cluster.archive)
        ends = {program.name: dict(sorted(program.ends.items())) for program in cluster.programs}
        facts = {
            **({"upgraded from": options.upgraded_from} if options.upgraded_from else {}),
            "faults": dict(faults.counts.most_common()),
            **{f"ends of {name}": ended for name, ended in ends.items()},
            "requests": f"{traffic.requests:,}",
            "events": f"{traffic.events:,}",
            "examples": f"{checks[0].found:,}",
            "event time": f"{(traffic.users.now_ms - START_MS) / 1000:,.0f} s",
            "seconds": f"{elapsed_s():.0f}",
        }
        return Result([*checks, of_stops(statuses)], facts)


async def _disturb(traffic: Traffic, faults: Coroutine[Any, Any, None]) -> None:
    """Play traffic, and faults from a while later until a while before its end."""
    stop = asyncio.Event()

    async def unleash() -> None:
        await asyncio.sleep(_QUIET_S)
        await faults
        await asyncio.sleep(_QUIET_S)
        stop.set()

    await _together(traffic.run(stop), unleash())


async def _together(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run them all; the first failure ends the others and is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    typer.run(main)
