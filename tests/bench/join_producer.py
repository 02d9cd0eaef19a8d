"""Sends a log in a process of its own: ``python -m tests.bench.join_producer``, see `tests.bench.turns`."""

from __future__ import annotations

import asyncio
import time
from functools import cache

from tests.bench.join_log import Encoding, JoinLog, join_log
from tests.bench.join_peers import create_topics, produce
from tests.bench.turns import serve

_log = cache(join_log)


def _made(impressions: int, encoding: Encoding, partitions: int, per_second: float) -> JoinLog:
    return _log(impressions, encoding, partitions=partitions, per_second=per_second)


def prepare(*, impressions: int, encoding: Encoding, partitions: int, per_second: float) -> dict[str, float]:
    """Have the log at hand."""
    log = _made(impressions, encoding, partitions, per_second)
    return {"records": len(log.records), "examples": log.examples}


def send(
    *, bootstrap: str, prefix: str, impressions: int, encoding: Encoding, partitions: int, per_second: float
) -> dict[str, float]:
    """Send it; the topics are there."""
    log = _made(impressions, encoding, partitions, per_second)
    began = time.monotonic()
    asyncio.run(produce(bootstrap, log, prefix, partitions))
    return {"wall_s": time.monotonic() - began}


def topics(*, bootstrap: str, prefix: str, partitions: int) -> dict[str, float]:
    """Create the topics."""
    asyncio.run(create_topics(bootstrap, prefix, partitions))
    return {}


if __name__ == "__main__":
    serve({"prepare": prepare, "topics": topics, "send": send})
