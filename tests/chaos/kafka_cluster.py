"""Nodes of Apache Kafka, each with a proxy before what its clients and one before what its peers connect to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from os import kill
from pathlib import Path
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]

from stream.embedded.process import LOOPBACK, ServerStartError
from tests.apache_kafka import ApacheKafka
from tests.chaos.proxy import Proxy

REPLICAS = 3
MIN_IN_SYNC = 2
BROKER_SESSION_S = 3.0  # a silent broker loses what it leads
FOLLOWER_LAG_S = 3.0  # a follower that has not caught up for so long is not in sync
_SYNC_TIMEOUT_S = 120.0
_LOOK_EVERY_S = 0.25
_LOOKS = 2  # in a row: one broker may not have heard yet what the others know
_ASK_TIMEOUT_MS = 2_000
_HEAP_MB = {1: 512}  # of few nodes; more of them share the memory
_SMALL_HEAP_MB = 256
_SMALL = {
    "num.network.threads": "2",
    "num.io.threads": "3",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": str(8 << 20),  # half of a small heap otherwise
}


class PartitionState(NamedTuple):
    """A partition as a broker sees it; leader -1: it has none."""

    topic: str
    partition: int
    leader: int
    replicas: Sequence[int]
    in_sync: Sequence[int]

    @property
    def is_whole(self) -> bool:
        """Whether it is led and every replica holds it."""
        return self.leader >= 0 and {*self.in_sync} == {*self.replicas}


class KafkaNode:
    """One of them. ``clients`` and ``peers`` are the ways to it; ``direct`` is that of clients not to be cut off."""

    def __init__(
        self,
        number: int,
        ports: Iterator[int],
        voters: Mapping[int, int],
        home: Path,
        data_dir: Path,
        more: dict[str, str],
    ) -> None:
        self.number = number
        self.direct = next(ports)
        inner_clients, inner_peers = next(ports), next(ports)
        self.clients, self.peers = Proxy(next(ports), inner_clients), Proxy(next(ports), inner_peers)
        at = {
            "PLAINTEXT": self.direct, "PROXIED": inner_clients, "PEERS": inner_peers, "CONTROLLER": voters[number],
        }  # fmt: skip
        advertised = {"PLAINTEXT": self.direct, "PROXIED": self.clients.port, "PEERS": self.peers.port}
        nodes = len(voters)
        properties = {
            "node.id": str(number),
            "listeners": _addresses(at),
            "advertised.listeners": _addresses(advertised),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in at),
            "controller.quorum.voters": ",".join(f"{n}@{LOOPBACK}:{port}" for n, port in voters.items()),
            "inter.broker.listener.name": "PEERS",
            **(_replicated() if nodes > 1 else {}),
            **more,
        }
        heap_mb = _HEAP_MB.get(nodes, _SMALL_HEAP_MB)
        self.server = ApacheKafka(home, self.direct, data_dir, heap_mb, properties=properties)

    def pause(self) -> None:
        """SIGSTOP: it is cut off from everybody, and every connection to it stays."""
        kill(self.server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        kill(self.server.pid, signal.SIGCONT)


class KafkaCluster:
    """`async with KafkaCluster(home, data_dir, ports, nodes=3) as kafka`: every node is controller and broker.

    Several nodes have each record on `REPLICAS` of them, acknowledged once `MIN_IN_SYNC` have it.

    Parameters
    ----------
    ports : free ones that stay free while a node is down, six for each.
    properties : further settings of every node.
    """

    def __init__(
        self,
        home: Path,
        data_dir: Path,
        ports: Iterator[int],
        nodes: int = 1,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        voters = {number: next(ports) for number in range(1, nodes + 1)}
        folder = {number: data_dir / str(number) if nodes > 1 else data_dir for number in voters}
        more = dict(properties or {})
        self.nodes = [KafkaNode(number, ports, voters, home, folder[number], more) for number in voters]

    @property
    def bootstrap(self) -> str:
        """For clients that are no part of what is tested."""
        return ",".join(f"{LOOPBACK}:{node.direct}" for node in self.nodes)

    @property
    def proxied_bootstrap(self) -> str:
        """For those that may be cut off."""
        return ",".join(f"{LOOPBACK}:{node.clients.port}" for node in self.nodes)

    def node(self, number: int) -> KafkaNode:
        """By the number that leaders are called by."""
        return self.nodes[number - 1]

    async def start(self) -> None:
        """Start all; a node alone would wait for the others. Raises ServerStartError."""
        await asyncio.gather(*(proxy.start() for node in self.nodes for proxy in (node.clients, node.peers)))
        await asyncio.gather(*(node.server.start() for node in self.nodes))

    async def stop(self) -> None:
        """Stop all, the last ones the hard way: without a majority none ends in good order."""
        for node in self.nodes:
            try:
                node.resume()
            except (RuntimeError, ProcessLookupError):
                continue
        if len(self.nodes) > 1:
            await asyncio.gather(*(node.server.kill() for node in self.nodes))
        await asyncio.gather(*(node.server.stop() for node in self.nodes))
        await asyncio.gather(*(proxy.stop() for node in self.nodes for proxy in (node.clients, node.peers)))

    async def __aenter__(self) -> KafkaCluster:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def partitions(self, node: KafkaNode | None = None) -> list[PartitionState]:
        """Every partition of every topic, as ``node`` sees it, or the first that answers. Raises KafkaError."""
        if node is not None:
            return await _seen_by(node)
        for each in self.nodes[:-1]:
            with suppress(KafkaError, OSError):
                return await _seen_by(each)
        return await _seen_by(self.nodes[-1])

    async def until_in_sync(self) -> None:
        """Until every node says that every partition is led and held by all its replicas.

        Raises ServerStartError after `_SYNC_TIMEOUT_S`.
        """
        deadline = asyncio.get_running_loop().time() + _SYNC_TIMEOUT_S
        looks = 0
        while looks < _LOOKS:
            missing = await self._not_in_sync()
            looks = 0 if missing else looks + 1
            if missing and asyncio.get_running_loop().time() > deadline:
                raise ServerStartError(
                    f"after {_SYNC_TIMEOUT_S:g} s the brokers are not in sync: {', '.join(missing[:5])}. No further "
                    "one may go down without taking records with it. Look at their logs."
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _not_in_sync(self) -> list[str]:
        missing = []
        for node in self.nodes:
            try:
                seen = await self.partitions(node)
            except (KafkaError, OSError) as error:
                missing.append(f"broker {node.number} does not answer ({error})")
                continue
            missing += [
                f"{one.topic}[{one.partition}] led by {one.leader}, in sync {one.in_sync} of {one.replicas}"
                for one in seen
                if not one.is_whole
            ]
        return missing


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())


def _replicated() -> dict[str, str]:
    replicas, least = str(REPLICAS), str(MIN_IN_SYNC)
    return {
        "default.replication.factor": replicas,
        "min.insync.replicas": least,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": least,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": least,
        "broker.session.timeout.ms": str(int(BROKER_SESSION_S * 1000)),
        "replica.lag.time.max.ms": str(int(FOLLOWER_LAG_S * 1000)),
        **_SMALL,
    }


async def _seen_by(node: KafkaNode) -> list[PartitionState]:
    bootstrap = f"{LOOPBACK}:{node.direct}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=_ASK_TIMEOUT_MS)
    try:
        await admin.start()
        answer = await admin._send_request(MetadataRequest(None), node.number)  # the public one asks any node
    finally:
        await admin.close()
    return [
        PartitionState(topic["topic"], one["partition"], one["leader"], one["replicas"], one["isr"])
        for topic in answer.to_object()["topics"]
        for one in topic["partitions"]
    ]
