"""Records of the examples topic: decoded and checked against the feature spec."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from stream.examples import Displays, ExampleRows
from stream.records import ExamplesRecord, RecordError

_decoder = msgspec.msgpack.Decoder(ExamplesRecord)


class SpecShape(Protocol):
    """What identifies rows of a feature spec."""

    @property
    def hash(self) -> str: ...  # noqa: D102
    @property
    def id_columns(self) -> int: ...  # noqa: D102
    @property
    def dense_inputs(self) -> int: ...  # noqa: D102


class Decoded(NamedTuple):
    """What one record holds."""

    rows: ExampleRows
    watermark_ms: int
    displays: Displays | None


def decode_examples(value: bytes | None, spec: SpecShape) -> tuple[ExampleRows, int]:
    """The rows and the watermark of one record; RecordError as `decode_record`."""
    decoded = decode_record(value, spec)
    return decoded.rows, decoded.watermark_ms


def decode_record(value: bytes | None, spec: SpecShape) -> Decoded:
    """Everything in one record; RecordError for bytes or columns that are not those of ``spec``."""
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
    displays = None if record.displays is None else Displays.from_columns(record.displays)
    return Decoded(ExampleRows.from_record(record), record.watermark_ms, displays)
