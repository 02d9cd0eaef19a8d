"""Records of the examples topic: rows split so that none is larger than the topic takes, decoded, checked."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple, NoReturn, Protocol

import msgspec

from learners.examples.kinds import EXPOSURE
from stream.records.columns import RecordError
from stream.records.examples import ExampleRows
from stream.records.limits import LATEST_MS, MAX_RECORD_BYTES, check_rows, check_size
from stream.records.wire import ExamplesRecord

SPLIT_ROWS = 4_096  # one call of the session store folds them, and Redis answers nobody else for some 30 ms

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
    """The rows and the watermark of one record.

    Raises RecordError for bytes or columns that are not those of ``spec``; its reason is ``settled`` for a record of
    the time when an example waited for its label: such a log cannot go on, see `refuse_settled`.
    """
    if not value:
        raise RecordError("malformed", "the record is empty, a tombstone; expected one of examples")
    check_size(value)
    try:
        record = _decoder.decode(value)
    except msgspec.ValidationError as error:
        if _is_settled(value):
            raise RecordError("settled", SETTLED_DETAIL) from error
        raise RecordError("schema", f"not a record of examples: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise RecordError("malformed", f"not read as a record of examples: {error}") from error
    check_rows(record.rows)
    if not 0 <= record.watermark_ms < LATEST_MS:
        raise RecordError("time", f"watermark_ms={record.watermark_ms} is not from 0 to {LATEST_MS} (2100)")
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


SETTLED_DETAIL = (
    "a record of labelled examples, as they were written when an impression waited for its label: read as exposures "
    "and clicks it would teach every impression wrong"
)


class SettledLogError(ValueError):
    """The examples topic was written by a release whose examples waited for their labels."""


def refuse_settled(topic: str, partition: int, offset: int) -> NoReturn:
    """Raise SettledLogError for the record of that kind at ``offset``."""
    raise SettledLogError(
        f"{topic}[{partition}] {offset} is {SETTLED_DETAIL}. Stop the workers, train a base from the archive, then "
        f"delete the topic (python -m stream topics --create makes it again) or set another MILLSTREAM_TOPIC_PREFIX."
    )


def _is_settled(value: bytes) -> bool:
    """Whether this is an examples record with a column of labels, of that release: they fit its kinds."""
    try:
        raw = msgspec.msgpack.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if not isinstance(raw, dict) or raw.get("record") != "examples":
        return False
    label, kind = raw.get("label"), raw.get("kind")
    if not isinstance(label, bytes):
        return False
    return not isinstance(kind, bytes) or (
        len(kind) == len(label)
        and all(one == 1 or (one == 0 and of == EXPOSURE) for one, of in zip(label, kind, strict=True))
    )


class ExamplesPart(NamedTuple):
    """What goes into one record, and the first of all rows that does."""

    rows: ExampleRows
    first_row: int


def split_rows(rows: ExampleRows, record_bytes: int = MAX_RECORD_BYTES) -> Iterator[ExamplesPart]:
    """Split a step's rows, in their order, into parts of half of what a record may have; at least one part."""
    most = max(1, min(SPLIT_ROWS, record_bytes // 2 // _row_bytes(rows)))
    for first in range(0, max(len(rows), 1), most):
        yield ExamplesPart(rows.take(slice(first, first + most)), first)


def _row_bytes(rows: ExampleRows) -> int:
    return sum(column.dtype.itemsize * prod(column.shape[1:]) for column in rows.columns().values())
