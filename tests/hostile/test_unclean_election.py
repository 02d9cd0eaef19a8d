"""An election that loses acknowledged records: what is gone is said, and what exists is learned once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.errors import GroupCoordinatorNotAvailableError  # type: ignore[import-untyped]

from learners.examples.kinds import CLICK
from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogReader
from stream.records.topics import CLICKS, EXAMPLES, JOURNAL
from stream.servers.settings import StreamSettings
from tests.brokers import skip_or_fail
from tests.chaos.kafka_cluster import KafkaCluster, KafkaNode, PartitionState
from tests.chaos.outcome import Outcome
from tests.chaos.ports import lasting_ports
from tests.chaos.topic_log import TopicLog
from tests.chaos.unclean_election import elect_uncleanly
from tests.chaos.verdict import journalled
from tests.stream.pipeline import START_MS, Front, Shown, base_snapshot, events, front, said, serve, until, worker

SAFE, READ, UNREAD, NEW = 20, 10, 5, 20  # clicks: on all brokers, lost after and before they were read, after the loss
CLICKED = SAFE + READ + UNREAD + NEW


@dataclass
class Doomed:
    """Brokers, one of which leads the clicks and nothing else."""

    kafka: KafkaCluster
    leader: KafkaNode
    settings: StreamSettings

    @property
    def other(self) -> KafkaNode:
        """A broker that stays."""
        return next(node for node in self.kafka.nodes if node is not self.leader)

    async def clicks(self) -> PartitionState:
        """The partition of the clicks, as a broker sees it that stays."""
        return next(one for one in await self.kafka.partitions(self.other) if one.topic == CLICKS)

    async def click(self, front: Front, shown: Shown, rows: Sequence[int]) -> None:
        """A record a click, acknowledged by all who are in sync."""
        for row in rows:
            one = (shown.impression_id[row], shown.ts_ms[row] + 1_100, shown.user_key[row])
            await front.send(CLICKS, events([one]).encode(), 0)

    async def end(self) -> int:
        """Of the log of clicks."""
        async with LogReader(await find_broker(self.settings)) as log:
            return await log.end(CLICKS, 0)


@pytest.fixture
async def doomed(tmp_path: Path) -> AsyncIterator[Doomed]:
    """Three brokers; only a record of the clicks is acknowledged by one alone."""
    if not os.environ.get("KAFKA_HOME"):
        skip_or_fail("KAFKA_HOME is not set: only a cluster elects leaders")
    few = {"offsets.topic.num.partitions": "1", "transaction.state.log.num.partitions": "1"}
    ports = iter(lasting_ports(21))
    async with KafkaCluster(Path(os.environ["KAFKA_HOME"]), tmp_path / "kafka", ports, 3, few) as kafka:
        await _make_internal_topics(kafka)
        busy = {one.leader for one in await kafka.partitions()}
        leader = next(node for node in kafka.nodes if node.number not in busy)
        settings = StreamSettings(kafka_bootstrap_servers=kafka.bootstrap, partitions=1, replication_factor=3)
        await _make_topics(kafka, settings, leader.number)
        await kafka.until_in_sync()
        yield Doomed(kafka, leader, settings)


async def _make_internal_topics(kafka: KafkaCluster) -> None:
    """Whoever first asks for a group or a transaction makes the broker create them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()

    async def made() -> bool:
        with suppress(GroupCoordinatorNotAvailableError):
            await admin.find_coordinator("first")
        return len(await kafka.partitions()) == 2

    try:
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="first"):
            await until(made, "the topics of offsets and of transactions are there")
    finally:
        await admin.close()


async def _make_topics(kafka: KafkaCluster, settings: StreamSettings, leader: int) -> None:
    others = [node.number for node in kafka.nodes if node.number != leader]
    new = [
        NewTopic(
            topic.name, -1, -1, {0: [leader, *others] if topic.name == CLICKS else [*others, leader]},
            topic.config() | ({"min.insync.replicas": "1"} if topic.name == CLICKS else {}),
        )
        for topic in settings.topics()
    ]  # fmt: skip
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.create_topics(new)
    finally:
        await admin.close()


@asynccontextmanager
async def followed(settings: StreamSettings) -> AsyncIterator[tuple[TopicLog, Outcome]]:
    """What comes out."""
    log = TopicLog(await find_broker(settings))
    yield log, Outcome(log)


async def test_an_unclean_election_loses_what_only_the_old_leader_held_and_nothing_else(
    doomed: Doomed, redis_url: str, tmp_path: Path
) -> None:
    """Clicks acknowledged by it alone are gone, those that were read are learned, new ones at their offsets too."""
    shown = serve(range(1, 1 + CLICKED), [START_MS] * CLICKED, 1, first_id=1)
    base_snapshot(tmp_path / "snapshots", watermark_ms=START_MS)
    environment = {
        **os.environ, "KAFKA_BOOTSTRAP_SERVERS": doomed.kafka.proxied_bootstrap, "REDIS_URL": redis_url,
        "MILLSTREAM_PARTITIONS": "1", "MILLSTREAM_REPLICATION_FACTOR": "3", "MILLSTREAM_LEARN_BATCH_ROWS": "8",
    }  # fmt: skip
    log_file = tmp_path / "worker.log"
    async with (
        front(doomed.settings) as sender,
        worker(environment, tmp_path / "snapshots", log_file) as running,
        followed(doomed.settings) as (log, outcome),
    ):

        async def joined() -> list[int]:
            await log.read_on(EXAMPLES)
            return sorted(one.impression_id for one, _ in outcome.examples() if one.kind == CLICK)

        async def until_joined(*rows: range) -> None:
            wanted = [shown.impression_id[row] for some in rows for row in some]

            async def are_there() -> bool:
                return len(await joined()) >= len(wanted)

            await until(are_there, f"{len(wanted)} clicks are joined")
            assert await joined() == wanted

        await sender.show(shown)
        safe, read = range(SAFE), range(SAFE, SAFE + READ)
        unread, new = range(SAFE + READ, SAFE + READ + UNREAD), range(SAFE + READ + UNREAD, CLICKED)
        await doomed.click(sender, shown, safe)
        await until_joined(safe)
        await doomed.leader.peers.stop()
        await doomed.click(sender, shown, read)  # the first waits until nobody else counts any more
        assert [*(await doomed.clicks()).in_sync] == [doomed.leader.number]
        await until_joined(safe, read)
        await doomed.leader.clients.stop()
        await doomed.click(sender, shown, unread)
        await _die_and_let_another_lead(doomed)
        assert await doomed.end() == SAFE, "lost: READ + UNREAD records, at offsets SAFE and after"
        await doomed.click(sender, shown, new)
        await until_joined(safe, read, new)
        await asyncio.gather(doomed.leader.peers.start(), doomed.leader.clients.start())
        await doomed.leader.server.start()
        await doomed.kafka.until_in_sync()
        assert await doomed.end() == SAFE + NEW, "the old leader follows, and has forgotten what it alone held"

        await sender.pass_time(START_MS + 100_000_000)

        async def learned() -> bool:
            await log.read_on(EXAMPLES, JOURNAL)
            settled = len([*outcome.examples()]) >= 2 * CLICKED - UNREAD
            return settled and not journalled(outcome.learnable(), outcome.journal())[0].lost

        await until(learned, "all examples are learned")
        await until_joined(safe, read, new)
        assert all(check.holds for check in journalled(outcome.learnable(), outcome.journal()))
        counted = (await running.metrics())[f'millstream_log_cut_records_total{{agent="join",topic="{CLICKS}"}}']
        assert counted == READ
        assert said(log_file).count("the log is not the one that was read") == 1
        assert await running.stop() == 0


async def _die_and_let_another_lead(doomed: Doomed) -> None:
    await doomed.leader.server.kill()

    async def leaderless() -> bool:
        return (await doomed.clicks()).leader < 0

    await until(leaderless, "nobody leads the clicks")
    await elect_uncleanly(doomed.other, CLICKS, 0)

    async def led() -> bool:
        return (await doomed.clicks()).leader >= 0

    await until(led, "another broker leads the clicks")
