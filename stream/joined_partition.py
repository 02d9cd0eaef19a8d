"""One partition of the join as a worker runs it: its core, its writer, and what it left in the log in earlier lives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import msgspec
import structlog

from learners.spec import FeatureSpec
from stream.broker import Broker
from stream.click_fold import ClickFold
from stream.examples_log import decode_record
from stream.group_offsets import committed_offsets
from stream.join import JoinCore
from stream.join_output import Reject, Resume
from stream.log_reader import LogReader
from stream.log_writer import LogWriter, open_writer
from stream.metrics import WorkerMetrics
from stream.records import RecordError
from stream.topics import EXAMPLES, INPUTS

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class JoinedPartition:
    """A partition that is ours."""

    partition: int
    core: JoinCore
    clicks: ClickFold
    writer: LogWriter
    examples_end: int = 0  # the offset of the next examples record
    watermark_ms: int = 0  # of the newest one
    low_water: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)  # inputs of which nothing came yet: where they begin
    rejects: list[Reject] = field(default_factory=list)  # to be written with the next step
    written_at: float = 0.0  # of the clock that runs evenly: the last step that was written

    @classmethod
    async def open(
        cls,
        broker: Broker,
        group: str,
        spec: FeatureSpec,
        core: JoinCore,
        clicks: ClickFold,
        metrics: WorkerMetrics,
    ) -> Self:
        """Take a partition over: fence its former owner, then rebuild what the log holds of it.

        Raises
        ------
        LogEndsEarlierError
            The examples topic ends before what was committed.
        """
        writer = await open_writer(broker, f"{group}-{core.partition}")
        try:
            held = cls(core.partition, core, clicks, writer)
            await held._restore(broker, group, spec, metrics)
        except BaseException:
            await writer.close()
            raise
        return held

    async def _restore(self, broker: Broker, group: str, spec: FeatureSpec, metrics: WorkerMetrics) -> None:
        committed = await committed_offsets(broker, group, INPUTS, self.partition)
        self.low_water = {topic: at.offset for topic, at in committed.items()}
        resume = _resume({topic: at.metadata for topic, at in committed.items()})
        self.core.start_at(self.low_water, resume)
        self.examples_end, self.watermark_ms = resume.recalled_from, resume.watermark_ms
        async with LogReader(broker) as log:
            rows = await self._recall(log, spec, resume)
            for topic in INPUTS:
                self.unread[topic] = await self._first_offset(log, topic, metrics)
        _log.info(
            "partition restored",
            partition=self.partition,
            examples=rows,
            from_offset=resume.recalled_from,
            low_water=self.low_water,
        )

    async def _recall(self, log: LogReader, spec: FeatureSpec, resume: Resume) -> int:
        count = 0
        oldest = await log.oldest(EXAMPLES, self.partition)
        if oldest > resume.recalled_from:
            _log.warning(
                "examples of which late clicks could still come are no longer in the log",
                topic=EXAMPLES, partition=self.partition, offsets=(resume.recalled_from, oldest),
                remedy="such clicks are rejected as late; keep the topic for longer than MILLSTREAM_LATE_HORIZON_S",
            )  # fmt: skip
        async for record in log.read(EXAMPLES, self.partition, resume.recalled_from):
            self.examples_end = record.offset + 1
            try:
                decoded = decode_record(record.value, spec)
            except RecordError:
                continue  # of another feature spec: its impressions are settled, its columns mean nothing here
            self.core.recall(decoded.rows, decoded.displays, record.offset, decoded.watermark_ms)
            self.watermark_ms = max(self.watermark_ms, decoded.watermark_ms)
            count += len(decoded.rows)
            await asyncio.sleep(0)  # other agents' heartbeats go on
        return count

    async def _first_offset(self, log: LogReader, topic: str, metrics: WorkerMetrics) -> int:
        """Where to begin with an input; what retention took before it was joined is counted and said."""
        oldest, wanted = await log.oldest(topic, self.partition), self.low_water.get(topic, 0)
        if topic in self.low_water and oldest > wanted:
            metrics.counter("join_lost_records_total", topic=topic).inc(oldest - wanted)
            _log.error(
                "records were deleted before they were joined",
                topic=topic, partition=self.partition, offsets=(wanted, oldest),
                remedy="keep the topic for longer (retention.ms) than the workers may be down",
            )  # fmt: skip
        return max(oldest, wanted)

    async def close(self) -> None:
        """Let go of it; everything is in the log."""
        await self.writer.close()


def _resume(metadata: Mapping[str, str]) -> Resume:
    """What was committed with the offsets: the same with all; nothing where the broker keeps no metadata."""
    for text in metadata.values():
        if text:
            return Resume(**msgspec.json.decode(text, type=dict[str, int]))
    return Resume()
