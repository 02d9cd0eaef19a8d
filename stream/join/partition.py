"""One partition of the join as a worker runs it: its core, its writer, and what it left in the log in earlier lives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
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
from stream.kafka.input_record import InputRecord
from stream.kafka.log_cuts import LogCut, ReadUpTo, find_cut, report_cut
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import LogWriter, open_writer
from stream.metrics import WorkerMetrics
from stream.records.columns import RecordError
from stream.records.examples_codec import decode_examples, refuse_settled
from stream.records.topics import EXAMPLES, INPUTS

_EXAMPLES_END = "examples_end"  # in the metadata

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
    read: dict[str, ReadUpTo] = field(default_factory=dict)  # how far, by input
    cut: tuple[str, ...] = ()  # inputs whose logs were cut before this life: the consumer does not begin where they do
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
        now_ms: int,
    ) -> Self:
        """Take a partition over: fence its former owner, then rebuild what the log holds of it.

        A watermark later than ``now_ms`` in the log is not believed: it would stand still until then.

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
            await opened._restore(broker, group, spec, metrics, now_ms)
        except BaseException:
            await writer.close()
            raise
        return opened

    async def _restore(
        self, broker: Broker, group: str, spec: FeatureSpec, metrics: WorkerMetrics, now_ms: int
    ) -> None:
        committed = await committed_offsets(broker, group, INPUTS, self.partition)
        self.offsets = {topic: at.offset for topic, at in committed.items()}
        known = _known(at.metadata for at in committed.values())
        resume = Resume(**{name: known[name] for name in Resume._fields if name in known})
        resume = resume._replace(watermark_ms=min(resume.watermark_ms, now_ms))
        self.examples_end, self.watermark_ms = resume.examples, resume.watermark_ms
        async with LogReader(broker) as log:
            await self._compare_inputs(log, known, metrics)
            self.core.start_at(self.offsets, resume)
            rows = await self._restore_examples(log, spec, resume, now_ms)
            for topic in INPUTS:
                self.unread[topic] = await self._first_offset(log, topic, metrics)
        self._compare_examples(known.get(_EXAMPLES_END, 0), metrics)
        _log.info(
            "partition restored",
            partition=self.partition,
            examples=rows,
            from_offset=resume.examples,
            offsets=self.offsets,
        )

    async def _compare_inputs(self, log: LogReader, known: Mapping[str, int], metrics: WorkerMetrics) -> None:
        """Begin earlier with an input whose log has other records now where some were read before."""
        for topic, offset in self.offsets.items():
            read = _read_up_to(topic, known) or ReadUpTo(offset)
            if (cut := await find_cut(log, topic, self.partition, read)) is None:
                self.read[topic] = read
                continue
            report_cut(cut, metrics.counter("log_cut_records_total", agent="join", topic=topic))
            self.offsets[topic] = min(offset, cut.offset)
            self.cut += (topic,)

    def _compare_examples(self, written: int, metrics: WorkerMetrics) -> None:
        """Say that examples are gone which this partition wrote: who had not read them lacks them for good."""
        if written > self.examples_end:
            cut = LogCut(EXAMPLES, self.partition, self.examples_end, ReadUpTo(written))
            report_cut(cut, metrics.counter("log_cut_records_total", agent="join", topic=EXAMPLES))

    async def _restore_examples(self, log: LogReader, spec: FeatureSpec, resume: Resume, now_ms: int) -> int:
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
            watermark_ms = min(watermark_ms, now_ms)
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

    async def with_unread(self, broker: Broker, topic: str, records: list[InputRecord]) -> list[InputRecord]:
        """The records, and before the first ones of an input those that lie between them and the committed offset.

        What was under way when the partitions were assigned can come before what is read from that offset on.
        """
        first = self.unread.pop(topic, records[0].offset)
        if first >= records[0].offset:
            return records
        async with LogReader(broker) as log:
            missed = [
                InputRecord.of(topic, record)
                async for record in log.read(topic, self.partition, first, stop=records[0].offset)
            ]
        return [*missed, *records]

    def note_read(self, topic: str, records: Sequence[InputRecord]) -> None:
        """Records of an input were taken in."""
        self.read[topic] = max(self.read.get(topic, ReadUpTo(0)), ReadUpTo.after(records[-1]))

    def log_cut(self, topic: str, offset: int) -> None:
        """An input's log was cut while it was read: from ``offset`` on its records are new."""
        self.read.pop(topic, None)
        self.unread.pop(topic, None)
        self.core.log_cut(topic, offset)

    def metadata(self, resume: Resume) -> str:
        """What is committed with the offsets: what the next life needs beside them, and how far each log was read."""
        known = resume._asdict() | {_EXAMPLES_END: self.examples_end}
        for topic, read in self.read.items():
            known |= {f"{topic}.{name}": value for name, value in read._asdict().items()}
        return msgspec.json.encode(known).decode()

    async def close(self) -> None:
        """Close its writer; everything is in the log."""
        await self.writer.close()


def _known(metadata: Iterable[str]) -> dict[str, int]:
    """What was committed with the offsets: the same with all; nothing where the broker keeps no metadata."""
    for text in metadata:
        if text:
            return msgspec.json.decode(text, type=dict[str, int])
    return {}


def _read_up_to(topic: str, known: Mapping[str, int]) -> ReadUpTo | None:
    found = {name: known[key] for name in ReadUpTo._fields if (key := f"{topic}.{name}") in known}
    return ReadUpTo(**found) if "next_offset" in found else None
