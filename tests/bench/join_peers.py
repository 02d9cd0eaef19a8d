"""The join by other libraries: the same log from the same broker, each on a core of its own, one after the other.

``python -m tests.bench.join_peers [IMPRESSIONS] [ENCODING] [KAFKA_HOME]`` prints what they do on a broker of its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from stream.embedded.broker import EmbeddedBroker
from stream.kafka.admin import ensure_topics
from stream.records.topics import EXAMPLES, topic_table
from tests.apache_kafka import ApacheKafka
from tests.bench.harness import ROOT, Child, progress
from tests.bench.join_log import Encoding, JoinLog, digest, join_log

PEER_PYTHON = ROOT / ".venv-bench-join" / "bin" / "python"
_RECORD_BYTES = 4 << 20
_IN_FLIGHT = 10_000  # records handed to the producer before it is waited for


@dataclass(frozen=True, slots=True)
class Peer:
    """One contestant; ``options`` go to its turn."""

    name: str
    module: str
    library: str
    options: Mapping[str, Any] = field(default_factory=dict)
    python: Path = PEER_PYTHON

    @property
    def installed(self) -> bool:
        """Whether its library is there: not every one has a wheel for every Python."""
        if not self.python.exists():
            return False
        return subprocess.run([self.python, "-c", f"import {self.library}"], capture_output=True).returncode == 0


PEERS = (
    Peer("bytewax", "tests.bench.peers.bytewax_join", "bytewax"),
    Peer("Quix Streams", "tests.bench.peers.quix_join", "quixstreams"),
    Peer("Quix Streams, state without changelog", "tests.bench.peers.quix_join", "quixstreams", {"changelog": False}),
    Peer("Faust", "tests.bench.peers.faust_join", "faust", python=Path(sys.executable)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What one contestant made of a log, from the first record that it read to the last that it wrote."""

    peer: str
    impressions: int
    wall_s: float
    core_s: float
    right: bool  # its topic holds exactly the expected examples

    @property
    def per_core_second(self) -> float:
        """Impressions a second of its core: what others do on the machine is not in it."""
        return self.impressions / self.core_s

    @property
    def per_second(self) -> float:
        """Impressions a second of the wall clock: waiting for the broker is in it."""
        return self.impressions / self.wall_s

    def __str__(self) -> str:
        verdict = "right" if self.right else "WRONG"
        return f"{self.peer}: {self.per_core_second:,.0f}/core s, {self.per_second:,.0f}/s, {verdict}"


class _Example(msgspec.Struct):
    """What is looked at in an output row, JSON or msgpack."""

    impression_id: int
    kind: int


async def create_topics(bootstrap: str, prefix: str, partitions: int = 1) -> None:
    """Create all topics under the prefix, where they are missing.

    The log's times are long past: topics keep everything, or a broker would delete it while it is read.
    """
    await ensure_topics(
        bootstrap, [replace(topic, retention_ms=-1) for topic in topic_table(partitions, prefix=prefix)]
    )


async def produce(bootstrap: str, log: JoinLog, prefix: str, partitions: int = 1) -> None:
    """Create the topics and send the log, every record with the time at which it was sent."""
    await create_topics(bootstrap, prefix, partitions)
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", linger_ms=5, max_batch_size=1 << 20, max_request_size=_RECORD_BYTES
    )
    async with producer:
        for start in range(0, len(log.records), _IN_FLIGHT):
            sends = [
                await producer.send(
                    prefix + record.topic,
                    record.value,
                    key=record.key,
                    partition=record.partition,
                    timestamp_ms=record.sent_ms,
                )
                for record in log.records[start : start + _IN_FLIGHT]
            ]
            await asyncio.gather(*sends)


async def peers(
    bootstrap: str, log: JoinLog, prefix: str, *, core: int, embedded: bool, contestants: Sequence[Peer] = PEERS
) -> list[Joined]:
    """Let each join what `produce` has sent. The broker and the caller should stay off ``core``.

    ``embedded``: the broker is the embedded one.
    """
    found = []
    for number, peer in enumerate(contestants):
        if not peer.installed:
            progress(f"{peer.name}: not measured, {peer.library} is not installed for {peer.python}")
            continue
        found.append(await joined(peer, bootstrap, log, prefix, f"{prefix}peer-{number}", core, embedded))
        progress(str(found[-1]))
    return found


async def joined(
    peer: Peer, bootstrap: str, log: JoinLog, prefix: str, output: str, core: int, embedded: bool
) -> Joined:
    """One contestant's run; ``output`` must be a new topic."""
    examples = next(topic for topic in topic_table(1) if topic.name == EXAMPLES)
    await ensure_topics(bootstrap, [replace(examples, name=output, retention_ms=-1)])
    with Child(peer.module, cores=[core], python=peer.python) as child:
        answer = await asyncio.to_thread(
            child.turn,
            "join",
            bootstrap=bootstrap,
            prefix=prefix,
            output=output,
            expected=log.examples,
            embedded=embedded,
            **peer.options,
        )
    return Joined(
        peer=peer.name,
        impressions=log.impressions,
        wall_s=answer["wall_s"],
        core_s=answer["core_s"],
        right=await written(bootstrap, output) == (log.examples, log.digest),
    )


async def written(bootstrap: str, output: str) -> tuple[int, int]:
    """How many rows a contestant's topic holds, and their digest."""
    ids: list[int] = []
    kinds: list[int] = []
    place = TopicPartition(output, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, max_partition_fetch_bytes=_RECORD_BYTES
    )
    async with consumer:
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        end = None
        while end is None or await consumer.position(place) < end:
            for record in (await consumer.getmany(place, timeout_ms=200)).get(place, ()):
                packed = record.value[:1] != b"{"
                example = (msgspec.msgpack if packed else msgspec.json).decode(record.value, type=_Example)
                ids.append(example.impression_id)
                kinds.append(example.kind)
            end = consumer.highwater(place)  # of the last fetch
    return len(ids), digest(np.array(ids, np.uint64), np.array(kinds))


async def _measure(impressions: int, encoding: Encoding, kafka_home: Path | None) -> bool:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)  # the broker, started below, inherits this
    log = join_log(impressions, encoding)
    async with EmbeddedBroker() if kafka_home is None else ApacheKafka(kafka_home) as broker:
        await produce(broker.bootstrap, log, "bench.")
        found = await peers(broker.bootstrap, log, "bench.", core=cores[0], embedded=kafka_home is None)
    return all(one.right for one in found)


if __name__ == "__main__":
    count, encoding, home = [*sys.argv[1:], *("20000", "batch", "")[len(sys.argv) - 1 :]]
    right = asyncio.run(_measure(int(count), cast(Encoding, encoding), Path(home) if home else None))
    raise SystemExit(not right)
