"""The player against running programs, and what the topics hold afterwards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from learners.deepfm import DeepFM
from replay.errors import PlaybackError
from replay.frozen import frozen_logits
from replay.player import Player, PlayerOptions
from replay.progress import Progress
from replay.report import Report, outcomes, report
from replay.scenario import Scenario
from stream.examples import ExampleRows, concat
from stream.records import DeadLetter, ExamplesRecord
from stream.settings import StreamSettings, kafka_client_options
from stream.topics import DEADLETTER, EXAMPLES

READ_TIMEOUT_S = 30.0


async def play_and_report(
    scenario: Scenario,
    span_ms: tuple[int, int],
    settings: StreamSettings,
    serving_url: str,
    base: DeepFM,
    options: PlayerOptions,
    progress: Progress,
) -> Report:
    """Play the span, then report on the examples that the workers made of it.

    Raises
    ------
    PlaybackError
        When serving or the workers stop answering, or the topics cannot be read back.
    """
    bootstrap = settings.kafka_bootstrap_servers
    if bootstrap is None:
        raise PlaybackError(
            "KAFKA_BOOTSTRAP_SERVERS is not set: the player does not know the broker of the running workers. Set it, "
            "or run the demo, which starts a broker of its own."
        )
    async with _producer(settings, bootstrap) as producer, aiohttp.ClientSession(serving_url) as http:

        async def send(topic: str, partition: int, value: bytes) -> None:
            await producer.send(settings.topic_prefix + topic, value, partition=partition)

        player = Player(scenario, http, send, settings.partitions, options)
        with progress.counting("replay", scenario.count(*span_ms)) as advance:
            played = await player.run(*span_ms, advance)
        await producer.flush()
        async with http.get("/v1/status") as answer:
            status = await answer.json()
    examples = await _read_examples(settings, bootstrap, span_ms)
    dead = await _count_dead_letters(settings, bootstrap)
    found = report(outcomes(examples, frozen_logits(base, examples)), scenario.utc_offset_h)
    found.facts.update(
        freshness_s=status["freshness"],
        versions_swapped=status["swaps"],
        requests=played.requests,
        events=played.events,
        wall_s=round(played.wall_s, 1),
        events_per_s=round((played.requests + played.events) / played.wall_s, 1),
        dead_letters=sum(dead.values()),
        dead_letters_by_reason=dict(dead),
    )
    return found


class _producer:  # noqa: N801 - reads as a verb at its one use
    """An AIOKafkaProducer that is started and stopped with the block."""

    def __init__(self, settings: StreamSettings, bootstrap: str) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, acks="all", linger_ms=2, **kafka_client_options(settings)
        )

    async def __aenter__(self) -> AIOKafkaProducer:
        await self._producer.start()
        return self._producer

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()


async def _read_examples(settings: StreamSettings, bootstrap: str, span_ms: tuple[int, int]) -> ExampleRows:
    """Every example that was displayed within the span, in topic order, partition by partition."""
    parts: list[ExampleRows] = []
    async for value in _values(settings, bootstrap, EXAMPLES, settings.partitions):
        record = msgspec.msgpack.decode(value, type=ExamplesRecord)
        rows = ExampleRows.from_record(record)
        if len(rows):
            parts.append(rows.take((rows.ts_ms >= span_ms[0]) & (rows.ts_ms < span_ms[1])))
    if not parts:
        raise PlaybackError(
            "the examples topic is empty: the workers joined nothing of what was played. Look at the worker's log."
        )
    return concat(parts)


async def _count_dead_letters(settings: StreamSettings, bootstrap: str) -> Counter[str]:
    reasons: Counter[str] = Counter()
    async for value in _values(settings, bootstrap, DEADLETTER, 1):
        reasons[msgspec.msgpack.decode(value, type=DeadLetter).reason] += 1
    return reasons


async def _values(settings: StreamSettings, bootstrap: str, topic: str, partitions: int) -> AsyncIterator[bytes]:
    """Every record of a topic from its beginning to its end as of now.

    The end is the high watermark of the first fetch that returned: the embedded broker's answer to ListOffsets can be
    short.
    """
    homes = [TopicPartition(settings.topic_prefix + topic, partition) for partition in range(partitions)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, fetch_max_wait_ms=100, **kafka_client_options(settings)
    )
    await consumer.start()
    try:
        consumer.assign(homes)
        for home in homes:
            consumer.seek(home, 0)
        deadline = time.monotonic() + READ_TIMEOUT_S
        while True:
            batches = await consumer.getmany(timeout_ms=300)
            for records in batches.values():
                for record in records:
                    yield record.value
            ends = [consumer.highwater(home) for home in homes]
            positions = [await consumer.position(home) for home in homes]
            if all(end is not None and at >= end for at, end in zip(positions, ends, strict=True)):
                return
            if batches:
                deadline = time.monotonic() + READ_TIMEOUT_S
            elif time.monotonic() > deadline:
                raise PlaybackError(
                    f"topic {topic} could not be read to its end within {READ_TIMEOUT_S:.0f} s (at {positions} of "
                    f"{ends}): the summary would miss rows. Is the broker at {bootstrap} still there?"
                )
    finally:
        await consumer.stop()
