"""How far an agent is behind its topics, in records and in seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

from stream.kafka.input_record import InputRecord, TopicPartition
from stream.metrics import WorkerMetrics

_TOPIC_PARTITION = itemgetter(0, 1)  # of a record; counting by the attribute takes as long as decoding


class Lag:
    """The lag of one agent by topic: in records that of all partitions, in seconds that of the slowest.

    Records are those not read yet and those that wait in the inbox. Seconds are the age, by the broker's time, of the
    newest record worked off, or the time since the partition came, while others wait; 0 with none waiting.
    """

    def __init__(self, agent: str, topics: Iterable[str], metrics: WorkerMetrics) -> None:
        self._records = {topic: metrics.gauge("lag_records", agent=agent, topic=topic) for topic in topics}
        self._seconds = {topic: metrics.gauge("lag_seconds", agent=agent, topic=topic) for topic in topics}
        self._waiting: Counter[TopicPartition] = Counter()
        self._reached_ms: dict[TopicPartition, float] = {}

    def arrived(self, records: Sequence[InputRecord]) -> None:
        """Note records that are to be worked off."""
        self._waiting.update(map(_TOPIC_PARTITION, records))

    def worked_off(self, records: Sequence[InputRecord]) -> None:
        """Note records that were worked off, each partition's in order."""
        partitions = [*map(_TOPIC_PARTITION, records)]
        self._waiting.subtract(Counter(partitions))
        self._reached_ms.update(zip(partitions, (record.produced_ms for record in records), strict=True))

    def reset(self) -> None:
        """Nothing waits any more: the partitions are assigned again."""
        self._waiting.clear()
        self._reached_ms.clear()

    def measure(self, unread: Mapping[TopicPartition, int]) -> None:
        """Set the gauges; ``unread`` is how many records of each assigned partition were not read yet."""
        now_ms = time.time() * 1000
        records, seconds = dict.fromkeys(self._records, 0), dict.fromkeys(self._seconds, 0.0)
        for tp, count in unread.items():
            behind = count + self._waiting[tp]
            records[tp[0]] += behind
            reached_ms = self._reached_ms.setdefault(tp, now_ms)
            if behind:
                seconds[tp[0]] = max(seconds[tp[0]], (now_ms - reached_ms) / 1000)
        for topic, gauge in self._records.items():
            gauge.set(records[topic])
            self._seconds[topic].set(seconds[topic])
