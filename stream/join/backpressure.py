"""How far the learner is behind the join: by its journal, so that a slow learner slows the join."""

from __future__ import annotations

from collections import defaultdict, deque

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from stream.kafka.broker import Broker
from stream.kafka.log_reader import RecordRejects
from stream.records.columns import RecordError
from stream.records.internal import decode_journal
from stream.records.topics import JOURNAL


class Backpressure:
    """Counts the examples rows that were written and are not in the journal yet, from the first step of a learner on.

    As long as nothing is journalled, there may be no learner, and nobody is waited for.

    Parameters
    ----------
    most_rows : that may be unlearned before the join is paused; 0 never pauses it.
    rejects : told of what is no record of the journal.
    """

    def __init__(self, broker: Broker, most_rows: int, rejects: RecordRejects) -> None:
        self._broker = broker
        self._rejects = rejects
        self._most_rows = most_rows
        self._tp = TopicPartition(broker.topic(JOURNAL), 0)
        self._consumer: AIOKafkaConsumer | None = None
        self._unlearned: defaultdict[int, deque[tuple[int, int]]] = defaultdict(deque)  # partition → (offset, rows)
        self._learning = False
        self.unlearned_rows = 0

    @property
    def is_behind(self) -> bool:
        """Whether the join has to wait."""
        return 0 < self._most_rows < self.unlearned_rows

    def wrote(self, partition: int, offset: int, rows: int) -> None:
        """Note a record of examples."""
        if rows and self._learning and self._most_rows:
            self._unlearned[partition].append((offset, rows))
            self.unlearned_rows += rows

    async def refresh(self) -> None:
        """Read what was journalled since the last call; returns at once."""
        if self._consumer is None:
            self._consumer = await self._follow()
        for record in (await self._consumer.getmany(self._tp, timeout_ms=0)).get(self._tp, ()):
            try:
                ranges = decode_journal(record.value, self._broker.partitions).ranges
            except RecordError as error:
                self._rejects(JOURNAL, 0, record.offset, error)
                continue
            self._learning = True
            for learned in ranges:
                self._learned(learned.partition, learned.to_offset)

    async def stop(self) -> None:
        """Disconnect and count again from the next refresh on."""
        consumer, self._consumer = self._consumer, None
        self._unlearned.clear()
        self.unlearned_rows = 0
        if consumer is not None:
            await consumer.stop()

    async def _follow(self) -> AIOKafkaConsumer:
        consumer = self._broker.consumer(auto_offset_reset="latest")
        await consumer.start()
        consumer.assign([self._tp])
        return consumer

    def _learned(self, partition: int, before_offset: int) -> None:
        written = self._unlearned[partition]
        while written and written[0][0] < before_offset:
            self.unlearned_rows -= written.popleft()[1]
