"""Records of the examples topic: decoded, checked against the feature spec, fetched again by their offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from stream.examples import ExampleRows, concat
from stream.log_reader import LogReader
from stream.records import ExamplesRecord, OffsetRange, RecordError
from stream.topics import EXAMPLES

_decoder = msgspec.msgpack.Decoder(ExamplesRecord)


class SpecShape(Protocol):
    """What identifies rows of a feature spec."""

    @property
    def hash(self) -> str: ...  # noqa: D102
    @property
    def id_columns(self) -> int: ...  # noqa: D102
    @property
    def dense_inputs(self) -> int: ...  # noqa: D102


def decode_examples(value: bytes | None, spec: SpecShape) -> tuple[ExampleRows, int]:
    """The rows and the watermark of one record; RecordError for bytes or columns that are not those of ``spec``."""
    try:
        record = _decoder.decode(value or b"")
    except msgspec.ValidationError as error:
        raise RecordError("schema", f"not a record of examples: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError("malformed", f"not read as a record of examples: {error}") from error
    if record.spec_hash != spec.hash:
        raise RecordError(
            "spec", f"examples of feature spec {record.spec_hash}, here runs {spec.hash}: their columns do not fit"
        )
    if (record.fields, record.dense_inputs) != (spec.id_columns, spec.dense_inputs):
        raise RecordError(
            "schema",
            f"{record.fields} id columns and {record.dense_inputs} dense inputs, the spec has {spec.id_columns} and "
            f"{spec.dense_inputs}",
        )
    return ExampleRows.from_record(record), record.watermark_ms


async def read_ranges(log: LogReader, ranges: Sequence[OffsetRange], spec: SpecShape) -> ExampleRows:
    """The rows of some ranges of offsets, concatenated in the order of the ranges; unreadable records are left out."""
    parts = [ExampleRows.empty(spec.id_columns, spec.dense_inputs)]
    for stretch in ranges:
        last = stretch.to_offset if stretch.to_row else stretch.to_offset - 1
        async for record in log.read(EXAMPLES, stretch.partition, stretch.from_offset, stop=last + 1):
            try:
                rows, _ = decode_examples(record.value, spec)
            except RecordError:
                continue
            first_row = stretch.from_row if record.offset == stretch.from_offset else 0
            end_row = stretch.to_row if record.offset == stretch.to_offset else len(rows)
            parts.append(rows.take(np.arange(first_row, end_row)))
    return concat(parts)
