"""The join with bytewax, a contestant of `tests.bench.join_peers`.

Its own joins and windows do not fit: their clocks are one a key, so that with the impression as the key no row's time
passes by another's, and timers ring by the wall clock. So it is ``stateful_batch`` with the partition as the key: what
is known lies in dictionaries, and an exposure goes out when the slowest of the three topics has come to its display.
"""

from __future__ import annotations

import copy

import bytewax.operators as op  # type: ignore[import-not-found, unused-ignore]
import msgspec
from bytewax.connectors.kafka import (  # type: ignore[import-not-found, unused-ignore]
    KafkaSinkMessage,
    KafkaSourceMessage,
)
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow  # type: ignore[import-not-found, unused-ignore]
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import run_main  # type: ignore[import-not-found, unused-ignore]

from tests.bench.peers.dict_join import INPUTS, DictJoin, Row, rows_of
from tests.bench.peers.stopwatch import Stopwatch
from tests.bench.turns import serve


class JoinLogic(StatefulBatchLogic):  # type: ignore[misc, unused-ignore]
    """The state of one partition."""

    def __init__(self, state: DictJoin | None) -> None:
        self._join = state or DictJoin()

    def on_batch(self, values: list[Row]) -> tuple[list[Row], bool]:
        """Take in what has arrived."""
        return [example for row in values for example in self._join.take(row)], StatefulBatchLogic.RETAIN

    def snapshot(self) -> DictJoin:
        """What recovery would store; none is configured."""
        return copy.deepcopy(self._join)


def join(bootstrap: str, prefix: str, output: str, **_: object) -> dict[str, float]:
    """Run to the end of the topics, and answer how long that took."""
    clock = Stopwatch()
    written = 0

    def exploded(message: KafkaSourceMessage) -> list[tuple[str, Row]]:
        clock.start()
        partition = str(message.partition)
        return [(partition, row) for row in rows_of(message.topic.removeprefix(prefix), message.value)]

    def encoded(keyed: tuple[str, Row]) -> KafkaSinkMessage:
        nonlocal written
        written += 1
        row = keyed[1]
        return KafkaSinkMessage(str(row["user_key"]).encode(), msgspec.msgpack.encode(row))

    flow = Dataflow("join")
    read = kop.input("read", flow, brokers=[bootstrap], topics=[prefix + topic for topic in INPUTS], tail=False)
    rows = op.flat_map("rows", read.oks, exploded)
    examples = op.stateful_batch("join", rows, JoinLogic)
    kop.output("write", op.map("encode", examples, encoded), brokers=[bootstrap], topic=output)
    run_main(flow)
    return clock.stop(written)


if __name__ == "__main__":
    serve({"join": join})
