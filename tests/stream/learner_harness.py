"""A learner's shell over a real broker without Faust, which can be killed at any moment; and what it left behind."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from learners.examples.kinds import CLICK
from learners.snapshots.snapshot import newest_snapshot
from stream.kafka.broker import Broker, find_broker
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Commits, LogWriter, Outgoing, open_writer, shared_writer
from stream.learn.config import LearningConfig
from stream.learn.learn_order import in_learn_order
from stream.learn.loop import LearningLoop
from stream.learn.published import follow
from stream.learn.runner import LearnRunner
from stream.metrics import WorkerMetrics
from stream.records.examples import ExampleRows, concat
from stream.records.topics import EXAMPLES, JOURNAL, WEIGHTS
from stream.records.wire import DeltaPart, JournalRecord, SnapshotNotice
from stream.servers.settings import StreamSettings
from tests.stream.pipeline import SMALL, SPEC, START_MS, base_snapshot, example_rows, values

CONFIG = LearningConfig(learn_batch_rows=16, learn_interval_s=30.0, publish_interval_s=5.0, snapshot_interval_s=60.0)
FORGETFUL = dataclasses.replace(SMALL, admit_after=2, expire_after_s=64.0)  # so that time and sightings matter
Moment = Callable[[str, Any, str], bool]
"""Whether to die at a send: topic, decoded record, "before" or "after" it is stored."""

_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    WEIGHTS: msgspec.msgpack.Decoder(DeltaPart | SnapshotNotice),
    JOURNAL: msgspec.msgpack.Decoder(JournalRecord),
}


class Killed(BaseException):
    """The process ends here."""


class MortalWriter:
    """Dies at a moment of its life, on the way from record to record of one write.

    What it had written by then is stored; of the write itself what the broker's transactions make of it: nothing
    unless it was whole, or every record up to the moment where there are none.
    """

    def __init__(self, broker: Broker, inner: LogWriter, moment: Moment | None) -> None:
        self.inner = inner
        self._atomic = broker.idempotent
        self._moment = moment

    async def write(self, records: Sequence[Outgoing], commits: Commits | None = None) -> list[int]:
        """Like a writer's, until the moment has come."""
        for at, record in enumerate(records):
            for when, end in (("before", at), ("after", at + 1)):
                if self._is_moment(record, when):
                    if not self._atomic or end == len(records):
                        await self.inner.write(records[:end], commits)
                    raise Killed
        return await self.inner.write(records, commits)

    async def close(self) -> None:
        """Let go."""
        await self.inner.close()

    def _is_moment(self, record: Outgoing, when: str) -> bool:
        decoder = _decoders.get(record.topic)
        return bool(decoder and self._moment and self._moment(record.topic, decoder.decode(record.value), when))


@dataclass
class LearnerHarness:
    """A base snapshot, a log of examples in the topic, and learners that come and go."""

    broker: Broker
    root: Path
    records: list[InputRecord]  # in the order in which they arrive
    rows: dict[tuple[int, int], ExampleRows]  # by partition and offset

    @classmethod
    async def make(cls, settings: StreamSettings, root: Path, count: int = 60) -> LearnerHarness:
        """``count`` records of up to 24 displays, every third of them clicked a second later.

        Each brings its partition 4 s further; time passes at the end.
        """
        base_snapshot(root, config=FORGETFUL, watermark_ms=START_MS)
        broker = await find_broker(settings)
        harness = cls(broker, root, [], {})
        rng = np.random.default_rng(5)
        parts = [(int(rng.integers(broker.partitions)), int(rng.integers(0, 25))) for _ in range(count)]
        parts += [(partition, 0) for partition in range(broker.partitions)]
        async with shared_writer(broker) as writer:
            for at, (partition, rows) in enumerate(parts):
                mark = START_MS + 4_000 * at + (3_600_000 if at >= count else 0)
                ids = rng.integers(1, 100, (rows, SPEC.id_columns)) + 1000 * (at // 12)  # they come and go
                shown = example_rows(
                    rows,
                    seed=at,
                    ids=ids.astype(np.uint64),
                    kind=np.zeros(rows, np.uint8),
                    ts_ms=np.full(rows, START_MS + 4_000 * at - 2_000),
                    logit=np.full(rows, np.log(0.5), np.float32),  # served with what is true, one third
                )
                await harness._write(writer, partition, with_clicks(shown), mark)
        return harness

    async def _write(self, writer: LogWriter, partition: int, rows: ExampleRows, watermark_ms: int) -> None:
        value = rows.to_record(SPEC.hash, watermark_ms).encode()
        (offset,) = await writer.write([Outgoing(EXAMPLES, value, partition=partition)])
        self.rows[partition, offset] = rows
        self.records.append(InputRecord(EXAMPLES, partition, offset, value, START_MS))

    async def learn(
        self, moment: Moment | None = None, committed: dict[TopicPartition, int] | None = None, *, in_step: bool = True
    ) -> tuple[bool, dict[TopicPartition, int]]:
        """One life of a learner, from what is committed; whether it was killed, and what it had committed then.

        ``in_step``: it waits for its snapshots.
        """
        writers: list[LogWriter] = []

        async def open_mortal(broker: Broker, owner: str) -> LogWriter:
            writers.append(await open_writer(broker, owner))
            return MortalWriter(broker, writers[-1], moment)

        metrics = WorkerMetrics(CollectorRegistry())
        runner = LearnRunner(self.broker, SPEC, CONFIG, str(self.root), metrics, open_writer=open_mortal)
        try:
            await runner.on_assigned(frozenset(range(self.broker.partitions)))
            for record in self.records:
                if record.offset >= (committed or {}).get(record.topic_partition, 0):
                    await runner.work([record])
                    if in_step:
                        await runner.snapshot_written()  # a process that is killed writes nothing afterwards
            await runner.on_revoked()
        except Killed:
            return True, dict(runner.offsets_to_commit())
        finally:
            await asyncio.gather(*(writer.close() for writer in writers))
        return False, dict(runner.offsets_to_commit())

    async def journal(self) -> list[JournalRecord]:
        """All learn steps of the topic."""
        return [_decoders[JOURNAL].decode(value) for value in await values(self.broker, JOURNAL)]

    async def never_killed(self) -> LearningLoop:
        """The base model after the journal's batches, in one life, each fetched the slow and obvious way."""
        loop = self.fresh_loop()
        for journal in await self.journal():
            loop.relearn(journal, self.fetched(journal))
        return loop

    def fresh_loop(self) -> LearningLoop:
        """A loop that has learned nothing beyond the base."""
        base = base_snapshot(self.root / "apart", config=FORGETFUL)
        return LearningLoop(base.model(), CONFIG, self.broker.partitions)

    def fetched(self, journal: JournalRecord) -> ExampleRows:
        """The rows of a step that is in the journal."""
        parts = [ExampleRows.empty(SPEC.id_columns, SPEC.dense_inputs)]
        for r in journal.ranges:
            for offset in range(r.from_offset, r.to_offset + 1):
                rows = self.rows.get((r.partition, offset))
                if rows is not None:
                    low = r.from_row if offset == r.from_offset else 0
                    high = r.to_row if offset == r.to_offset else len(rows)
                    parts.append(in_learn_order(rows).take(slice(low, high)))
        return concat(parts)

    async def served_sha256(self, version: int) -> str:
        """The weights that serving holds: the base and every delta."""
        model = base_snapshot(self.root / "apart", config=FORGETFUL).model()
        async with LogReader(self.broker) as log:
            await follow(log, model, version=0, last_version=version)
        return model.weights_sha256()

    async def check(self) -> None:
        """Every row was learned once; weights, deltas and the newest snapshot are those of a run never killed."""
        journal = await self.journal()
        assert [one.version for one in journal] == list(range(1, len(journal) + 1))
        assert sum(one.rows for one in journal) == sum(map(len, self.rows.values()))
        whole = await self.never_killed()
        found = newest_snapshot(str(self.root), spec_hash=SPEC.hash)
        assert found is not None
        assert found[1].version == whole.version == len(journal)
        assert found[1].weights_sha256() == whole.model.weights_sha256()
        assert await self.served_sha256(whole.version) == whole.model.weights_sha256()
        continued = found[1].model().state()
        expected = whole.model.state()
        assert continued.keys() == expected.keys()
        different = [name for name in expected if not np.array_equal(continued[name], expected[name])]
        assert set(different) <= {"table.pending", "table.removed"}, "the optimiser, too, is that of a run never killed"
        assert expected["table.expired"].any(), "ids must have been forgotten on the way"


def with_clicks(shown: ExampleRows) -> ExampleRows:
    """Every third of these exposures clicked a second later, the clicks behind them."""
    clicked = shown.take(slice(None, None, 3))
    after_ms = np.full(len(clicked), 1_000)
    return concat([shown, clicked.with_event(CLICK, known_ms=clicked.ts_ms + 1_000, delay_ms=after_ms)])
