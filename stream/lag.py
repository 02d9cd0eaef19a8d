"""How far an agent is behind its topics, in records and in seconds."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from stream.inbox import InputRecord, Place
from stream.metrics import WorkerMetrics


class Lag:
    """The lag of one agent by topic: that of its slowest partition in seconds, of all together in records.

    Seconds are the age of the newest record worked off while others wait, by the broker's time; 0 with none waiting.
    """

    def __init__(self, agent: str, topics: Iterable[str], metrics: WorkerMetrics) -> None:
        self._records = {topic: metrics.gauge("lag_records", agent=agent, topic=topic) for topic in topics}
        self._seconds = {topic: metrics.gauge("lag_seconds", agent=agent, topic=topic) for topic in topics}
        self._worked: dict[Place, tuple[int, int]] = {}  # next offset, the broker's time of the last record

    def worked_off(self, records: Sequence[InputRecord]) -> None:
        """Note records that were worked off, each partition's in order."""
        for record in records:
            self._worked[record.place] = record.offset + 1, record.produced_ms

    def measure(self, assignment: Collection[Place], end_offsets: Mapping[Place, int]) -> None:
        """Set the gauges."""
        self._worked = {place: at for place, at in self._worked.items() if place in assignment}
        now_ms = time.time() * 1000
        records, seconds = dict.fromkeys(self._records, 0), dict.fromkeys(self._seconds, 0.0)
        for (topic, partition), end in end_offsets.items():
            if (known := self._worked.get((topic, partition))) is None:
                continue
            next_offset, produced_ms = known
            records[topic] += max(0, end - next_offset)
            if end > next_offset:
                seconds[topic] = max(seconds[topic], (now_ms - produced_ms) / 1000)
        for topic, gauge in self._records.items():
            gauge.set(records[topic])
            self._seconds[topic].set(seconds[topic])
