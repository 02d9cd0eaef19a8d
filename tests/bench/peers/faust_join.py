"""The join with plain Faust, a contestant of `tests.bench.join_peers`.

One agent a topic; what is known lies in dictionaries of the process, one set a partition, and an exposure goes out
when the slowest of the three topics has come to its display. The library's own state, a Table with its changelog,
takes some 4,000 updates a second and knows no event time.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import faust

from tests.bench.peers.dict_join import INPUTS, DictJoin, Row, rows_of
from tests.bench.peers.stopwatch import Stopwatch
from tests.bench.turns import serve


def join(bootstrap: str, prefix: str, output: str, expected: int, embedded: bool) -> dict[str, float]:
    """Run until so many examples are written, and answer how long that took."""
    return asyncio.run(_join(bootstrap, prefix, output, expected, embedded))


async def _join(bootstrap: str, prefix: str, output: str, expected: int, embedded: bool) -> dict[str, float]:
    clock, done = Stopwatch(), asyncio.Event()
    joins: defaultdict[int, DictJoin] = defaultdict(DictJoin)
    written = 0
    with tempfile.TemporaryDirectory(prefix="faust-") as folder:
        app = faust.App(
            output,
            broker=f"kafka://{bootstrap}",
            datadir=folder,
            web_enabled=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=2 if embedded else 60,  # the embedded broker forms a group in half of it
            broker_heartbeat_interval=0.5 if embedded else 3,
        )
        examples = app.topic(output, value_serializer="json")

        def agent(topic: str) -> Callable[[Any], Awaitable[None]]:
            async def take(stream: Any) -> None:
                nonlocal written
                async for event in stream.events():
                    clock.start()
                    for row in rows_of(topic, event.value):
                        for example in joins[event.message.tp.partition].take(row):
                            await _write(examples, example)
                            written += 1
                    if written == expected:
                        done.set()

            return take

        for topic in INPUTS:
            app.agent(app.topic(prefix + topic, value_serializer="raw"), name=topic)(agent(topic))
        await app.start()
        await done.wait()
        await app.producer.flush()
        figures = clock.stop(written)
        await app.stop()
    return figures


async def _write(examples: Any, example: Row) -> None:
    await examples.send(key=str(example["user_key"]), value=example)


if __name__ == "__main__":
    serve({"join": join})
