"""The player against running programs, and what the topics hold afterwards."""

from __future__ import annotations

from collections import Counter

import aiohttp
import msgspec

from learners.deepfm.model import DeepFM
from replay.errors import PlaybackError
from replay.frozen import frozen_logits
from replay.player import Player, PlayerOptions
from replay.progress import Progress
from replay.report import Report, displayed, outcomes, report
from replay.scenario import Scenario
from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogReader
from stream.records.examples import ExampleRows, concat
from stream.records.topics import DEADLETTER, EXAMPLES
from stream.records.wire import DeadLetter, ExamplesRecord
from stream.servers.settings import StreamSettings


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
    if settings.kafka_bootstrap_servers is None:
        raise PlaybackError(
            "KAFKA_BOOTSTRAP_SERVERS is not set: the player does not know the broker of the running workers. Set it, "
            "or run the demo, which starts a broker of its own."
        )
    broker = await find_broker(settings)
    async with broker.producer(linger_ms=2) as producer, aiohttp.ClientSession(serving_url) as http:

        async def send(topic: str, partition: int, value: bytes) -> None:
            await producer.send(settings.topic_prefix + topic, value, partition=partition)

        player = Player(scenario, http, send, settings.partitions, options)
        with progress.counting("replay", scenario.count(*span_ms)) as advance:
            played = await player.run(*span_ms, advance)
        await producer.flush()
        async with http.get("/v1/status") as answer:
            status = await answer.json()
    async with LogReader(broker) as log:
        shown = displayed(await _read_examples(log, settings, span_ms))
        dead = await _count_dead_letters(log)
    found = report(outcomes(shown, frozen_logits(base, shown.rows)), scenario.utc_offset_h)
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


async def _read_examples(log: LogReader, settings: StreamSettings, span_ms: tuple[int, int]) -> ExampleRows:
    """Every example that was displayed within the span, in topic order, partition by partition."""
    parts: list[ExampleRows] = []
    for partition in range(settings.partitions):
        async for stored in log.read(EXAMPLES, partition):
            rows = ExampleRows.from_record(msgspec.msgpack.decode(stored.value, type=ExamplesRecord))
            if len(rows):
                parts.append(rows.take((rows.ts_ms >= span_ms[0]) & (rows.ts_ms < span_ms[1])))
    if not parts:
        raise PlaybackError(
            "the examples topic is empty: the workers joined nothing of what was played. Look at the worker's log."
        )
    return concat(parts)


async def _count_dead_letters(log: LogReader) -> Counter[str]:
    reasons: Counter[str] = Counter()
    async for stored in log.read(DEADLETTER, 0):
        reasons[msgspec.msgpack.decode(stored.value, type=DeadLetter).reason] += 1
    return reasons
