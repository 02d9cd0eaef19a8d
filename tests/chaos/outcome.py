"""What the stream made of its inputs, as the topics hold it in the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import orjson

from learners.examples.kinds import CONVERSION
from stream.learn.learn_order import in_learn_order
from stream.records.examples import ExampleRows
from stream.records.examples_codec import decode_examples
from stream.records.topics import CALIBRATION, DEADLETTER, EXAMPLES, JOURNAL
from stream.records.wire import CalibrationRecord, DeadLetter, JournalRecord
from tests.chaos.simulated_users import BROKEN_MARK
from tests.chaos.topic_log import TopicLog
from tests.chaos.truth import ServedRow, Unreadable
from tests.chaos.verdict import Row
from tests.stream.oracle import Example, Rejected
from tests.stream.pipeline import SPEC


class ExamplesRecord(NamedTuple):
    """A record of the examples topic."""

    partition: int
    offset: int
    rows: ExampleRows
    watermark_ms: int


class Outcome:
    """Reads on in a topic log; what was decoded once is kept."""

    def __init__(self, log: TopicLog) -> None:
        self._log = log
        self._examples: dict[int, list[ExamplesRecord]] = {}

    def partitions(self) -> Iterator[tuple[int, list[ExamplesRecord]]]:
        """Each partition of the examples with its records."""
        for partition, records in self._log.partitions(EXAMPLES):
            known = self._examples.setdefault(partition, [])
            for stored in records[len(known) :]:
                known.append(ExamplesRecord(partition, stored.offset, *decode_examples(stored.value, SPEC)))
            yield partition, known

    def examples(self) -> Iterator[tuple[Example, ServedRow]]:
        """Every example, and what it holds of its served row."""
        for _, records in self.partitions():
            for record in records:
                yield from _examples(record.rows)

    def watermarks(self) -> dict[int, int]:
        """How far each partition of the examples has come."""
        return {p: max((one.watermark_ms for one in records), default=0) for p, records in self.partitions()}

    def ends(self) -> dict[int, int]:
        """The offset behind the last record of each partition of the examples."""
        return {p: records[-1].offset + 1 if records else 0 for p, records in self.partitions()}

    def learnable(self) -> dict[int, list[Row]]:
        """The rows that a model without a head for conversions learns, by partition, in the order of learning."""
        return {
            partition: [
                (record.offset, at)
                for record in records
                for at, kind in enumerate(in_learn_order(record.rows).kind.tolist())
                if kind != CONVERSION
            ]
            for partition, records in self.partitions()
        }

    def archived(self) -> dict[tuple[int, int, int], tuple[int, ...]]:
        """Every example as the archive must hold it: its place, and what tells it from others."""
        return {
            (partition, record.offset, at): row
            for partition, records in self.partitions()
            for record in records
            for at, row in enumerate(archived_columns(record.rows))
        }

    def journal(self) -> list[JournalRecord]:
        """The steps of the learner."""
        return [msgspec.msgpack.decode(stored.value, type=JournalRecord) for stored in self._log.records(JOURNAL)]

    def calibration(self) -> dict[int, CalibrationRecord]:
        """The newest state of each partition."""
        records = (msgspec.msgpack.decode(one.value, type=CalibrationRecord) for one in self._log.records(CALIBRATION))
        return {record.partition: record for record in records}

    def rejected(self) -> tuple[set[Rejected], set[Unreadable]]:
        """The events, and the records, that were put aside."""
        events: set[Rejected] = set()
        records: set[Unreadable] = set()
        for stored in self._log.records(DEADLETTER):
            letter = msgspec.msgpack.decode(stored.value, type=DeadLetter)
            if BROKEN_MARK in letter.payload or not letter.payload.startswith(b"{"):
                records.add((letter.topic, letter.partition, letter.offset))
            else:
                event = orjson.loads(letter.payload)
                events.add((letter.topic, int(event["impression_id"]), event["ts_ms"]))
        return events, records


def archived_columns(rows: ExampleRows) -> Iterator[tuple[int, ...]]:
    """What tells one example from another."""
    columns = (rows.impression_id, rows.kind, rows.known_ms)
    return zip(*(column.tolist() for column in columns), strict=True)


def _examples(rows: ExampleRows) -> Iterator[tuple[Example, ServedRow]]:
    columns = [getattr(rows, name).tolist() for name in Example._fields]
    for at, row in enumerate(zip(*columns, strict=True)):
        served = ServedRow(
            user_key=int(rows.user_key[at]),
            model_version=int(rows.model_version[at]),
            logit=rows.logit[at].tobytes(),
            p=rows.p[at].tobytes(),
            conversion_logit=rows.conversion_logit[at].tobytes(),
            conversion_p=rows.conversion_p[at].tobytes(),
            propensity=rows.propensity[at].tobytes(),
            ids=rows.ids[at].tobytes(),
            dense=rows.dense[at].tobytes(),
        )
        yield Example(*row), served
