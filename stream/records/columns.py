"""Columnar records: structs whose array fields are little-endian bytes, and what a record that breaks its schema is."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray


class RecordError(ValueError):
    """A record that cannot be decoded or breaks its schema; ``reason`` is the dead letter's closed-set reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record on the wire. Array fields are ``bytes``; ``LAYOUT`` gives each one's dtype and row shape.

    A layout entry is ``field: (dtype, rows, width)``: ``rows`` names the scalar or array field that gives the number
    of rows (``"rows"`` or ``"requests"``), ``width`` is "" for a vector or the name of the integer field that holds
    the number of columns.
    """

    LAYOUT: ClassVar[dict[str, tuple[str, str, str]]] = {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Read-only views of every array field, checked against the record's own counts.

        Raises
        ------
        RecordError
            ``schema`` when a field's length is not rows x width x itemsize.
        """
        out: dict[str, NDArray[Any]] = {}
        for name, dtype, rows_field, width_field in _layout(type(self)):
            raw: bytes = getattr(self, name)
            rows: int = getattr(self, rows_field)
            width: int = getattr(self, width_field) if width_field else 1
            expected = rows * width * dtype.itemsize
            if rows < 0 or width < 0 or len(raw) != expected:
                shape = (rows, width) if width_field else (rows,)
                raise RecordError(
                    "schema", f"{name} holds {len(raw)} bytes where {shape} of {dtype.str} need {expected}"
                )
            array = np.frombuffer(raw, dtype)
            out[name] = array.reshape(rows, width) if width_field else array
        return out

    @classmethod
    def of(cls, **values: Any) -> Self:
        """A record from arrays and scalars: arrays are cast to the layout's dtype and packed."""
        packed = {
            name: np.ascontiguousarray(value, dtype=cls.LAYOUT[name][0]).tobytes() if name in cls.LAYOUT else value
            for name, value in values.items()
        }
        return cls(**packed)

    def encode(self) -> bytes:
        """The msgpack bytes of the record."""
        return msgspec.msgpack.encode(self)


@cache
def _layout(record: type[Columns]) -> list[tuple[str, np.dtype[Any], str, str]]:
    """Field, dtype, the field that gives the rows, the one that gives the width."""
    return [(name, np.dtype(dtype), rows, width) for name, (dtype, rows, width) in record.LAYOUT.items()]
