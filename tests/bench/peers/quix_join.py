"""The join with Quix Streams, a contestant of `tests.bench.join_peers`.

None of its joins fits: a display must come out once, and its click once more whenever it comes. So it is a stateful
``apply`` over the three topics, joined by ``concat``, which reads them in the order of their records' timestamps: no
topic is ahead of another. There are no timers: displays are listed in the state under the tenth of a second in which
their last click can come, and the first row after it forgets them.

One partition: a state belongs to a message key, here one for all rows. With more partitions the library would send
every row through a repartition topic first.
"""

from __future__ import annotations

import tempfile
from typing import Any

from quixstreams import Application, State  # type: ignore[import-not-found, unused-ignore]

from learners.examples.kinds import CLICK, EXPOSURE
from stream.records.topics import CLICKS, IMPRESSIONS, SERVED
from tests.bench.join_times import HORIZON_MS, LINGER_MS
from tests.bench.peers.dict_join import INPUTS, Row, example, rows_of
from tests.bench.peers.stopwatch import Stopwatch
from tests.bench.turns import serve

_STEP_MS = 100  # what is forgotten in one step is listed together


class QuixJoin:
    """The function that the library calls for every row. ``clock`` starts with the first record."""

    def __init__(self, clock: Stopwatch) -> None:
        self._clock = clock
        self._step = 0  # the last one that this process has seen

    def rows(self, topic: str, value: bytes) -> list[Row]:
        """Explode a record."""
        self._clock.start()
        return rows_of(topic, value)

    def take(self, row: Row, state: State) -> list[Row]:
        """Take in one row; return the examples that it yields."""
        self._forget_until(row["ts_ms"] - LINGER_MS, state)
        topic, key = row["topic"], row.get("impression_id")
        if key is None:
            return []
        known = state.get(key) or {}
        known[topic] = row if topic == SERVED else row["ts_ms"]
        if SERVED not in known or IMPRESSIONS not in known:
            state.set(key, known)
            return []
        served, shown_ms, examples = known[SERVED], known[IMPRESSIONS], []
        if topic != CLICKS:
            examples.append(example(served, shown_ms, EXPOSURE, shown_ms))
        if CLICKS in known:
            state.delete(key)
            return [*examples, example(served, shown_ms, CLICK, known[CLICKS])]
        state.set(key, known)
        ends = _ends((shown_ms + HORIZON_MS) // _STEP_MS)
        state.set(ends, [*(state.get(ends) or []), key])
        return examples

    def _forget_until(self, now_ms: int, state: State) -> None:
        step = now_ms // _STEP_MS
        if step <= self._step:
            return
        self._step = step
        for passed in range(state.get("step") or step, step):
            for key in state.get(_ends(passed)) or []:
                if state.get(key) is not None:  # else it was clicked
                    state.delete(key)
            state.delete(_ends(passed))
        state.set("step", step)


def _ends(step: int) -> str:
    return f"ends {step}"


def join(
    bootstrap: str, prefix: str, output: str, expected: int, embedded: bool, changelog: bool = True
) -> dict[str, float]:
    """Run until so many examples are written, and answer how long that took.

    ``changelog`` is the library's default: the state outlives the machine. ``embedded``: the broker knows no idempotent
    producer, and forms a group in half the session timeout.
    """
    clock = Stopwatch()
    joined = QuixJoin(clock)
    with tempfile.TemporaryDirectory(prefix="quix-") as folder:
        app = Application(
            bootstrap,
            consumer_group=output,
            auto_offset_reset="earliest",
            state_dir=folder,
            use_changelog_topics=changelog,
            consumer_extra_config={"session.timeout.ms": 6_000} if embedded else {},
            producer_extra_config={"enable.idempotence": not embedded},
            consumer_poll_timeout=0.1,  # the default waits a second whenever fewer than 10,000 records are there
            loglevel="WARNING",
        )
        streams = [app.dataframe(app.topic(prefix + topic, value_deserializer="bytes")) for topic in INPUTS]
        rows = [_exploded(stream, topic, joined) for stream, topic in zip(streams, INPUTS, strict=True)]
        one = rows[0].concat(rows[1]).concat(rows[2]).group_by(lambda _: "all", name="all")
        examples = one.apply(joined.take, stateful=True, expand=True)
        examples.to_topic(app.topic(output), key=lambda row: str(row["user_key"]))
        app.run(count=expected, collect=False)
    return clock.stop(expected)


def _exploded(stream: Any, topic: str, joined: QuixJoin) -> Any:
    return stream.apply(lambda value: joined.rows(topic, value), expand=True)


if __name__ == "__main__":
    serve({"join": join})
