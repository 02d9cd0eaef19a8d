"""One partition of the join as a worker runs it: its core, its writer, and what it left in the log in earlier lives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import msgspec
import structlog

from learners.features.spec import FeatureSpec
from stream.clicks.sync import ClickSync
from stream.join.core import JoinCore
from stream.join.output import Resume
from stream.join.rejects import Reject
from stream.kafka.broker import Broker
from stream.kafka.committed import committed_offsets
from stream.kafka.gaps import report_loss
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import LogWriter, open_writer
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples_codec import decode_examples, refuse_settled
from stream.records.topics import EXAMPLES, INPUTS

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class JoinedPartition:
    """A partition that is ours."""

    partition: int
    core: JoinCore
    clicks: ClickSync
    writer: LogWriter
    examples_end: int = 0  # the offset of the next examples record
    watermark_ms: int = 0  # the newest examples record's
    offsets: dict[str, int] = field(default_factory=dict)  # committed, by input
    unread: dict[str, int] = field(default_factory=dict)  # inputs of which nothing came yet: where they begin
    rejects: list[Reject] = field(default_factory=list)  # to be written with the next step
    written_at: float = 0.0  # monotonic, s: when the last step was written

    @classmethod
    async def open(
        cls,
        broker: Broker,
        group: str,
        spec: FeatureSpec,
        core: JoinCore,
        clicks: ClickSync,
        metrics: WorkerMetrics,
    ) -> Self:
        """Take a partition over: fence its former owner, then rebuild what the log holds of it.

        Raises
        ------
        LogEndsEarlierError
            The examples topic ends before what was committed.
        SettledLogError
            It holds examples that waited for their labels.
        """
        writer = await open_writer(broker, f"{group}-{core.partition}")
        try:
            opened = cls(core.partition, core, clicks, writer)
            await opened._restore(broker, group, spec, metrics)
        except BaseException:
            await writer.close()
            raise
        return opened

    async def _restore(self, broker: Broker, group: str, spec: FeatureSpec, metrics: WorkerMetrics) -> None:
        committed = await committed_offsets(broker, group, INPUTS, self.partition)
        self.offsets = {topic: at.offset for topic, at in committed.items()}
        resume = _resume({topic: at.metadata for topic, at in committed.items()})
        self.core.start_at(self.offsets, resume)
        self.examples_end, self.watermark_ms = resume.examples, resume.watermark_ms
        async with LogReader(broker) as log:
            rows = await self._restore_examples(log, spec, resume)
            for topic in INPUTS:
                self.unread[topic] = await self._first_offset(log, topic, metrics)
        _log.info(
            "partition restored",
            partition=self.partition,
            examples=rows,
            from_offset=resume.examples,
            offsets=self.offsets,
        )

    async def _restore_examples(self, log: LogReader, spec: FeatureSpec, resume: Resume) -> int:
        count = 0
        oldest = await log.oldest(EXAMPLES, self.partition)
        if oldest > resume.examples:
            _log.warning(
                "exposures whose clicks could still come are no longer in the log",
                topic=EXAMPLES, partition=self.partition, offsets=(resume.examples, oldest),
                remedy="such clicks are rejected; keep the topic for longer than MILLSTREAM_CLICK_HORIZON_S",
            )  # fmt: skip
        async for record in log.read(EXAMPLES, self.partition, resume.examples):
            self.examples_end = record.offset + 1
            try:
                rows, watermark_ms = decode_examples(record.value, spec)
            except RecordError as error:
                if error.reason == "settled":
                    refuse_settled(EXAMPLES, self.partition, record.offset)
                continue  # of another feature spec: its columns mean nothing here
            self.core.restore(rows, record.offset, watermark_ms)
            self.watermark_ms = max(self.watermark_ms, watermark_ms)
            count += len(rows)
            await asyncio.sleep(0)  # other agents' heartbeats go on
        return count

    async def _first_offset(self, log: LogReader, topic: str, metrics: WorkerMetrics) -> int:
        """Where to begin with an input; what retention took before it was joined is counted and said."""
        oldest, wanted = await log.oldest(topic, self.partition), self.offsets.get(topic, 0)
        if topic in self.offsets and oldest > wanted:
            lost = metrics.counter("join_lost_records_total", topic=topic)
            report_loss(lost, "joined", topic, self.partition, (wanted, oldest))
        return max(oldest, wanted)

    async def close(self) -> None:
        """Close its writer; everything is in the log."""
        await self.writer.close()


def _resume(metadata: Mapping[str, str]) -> Resume:
    """What was committed with the offsets: the same with all; nothing where the broker keeps no metadata."""
    for text in metadata.values():
        if text:
            known = msgspec.json.decode(text, type=dict[str, int])
            return Resume(**{name: known[name] for name in Resume._fields if name in known})
    return Resume()
