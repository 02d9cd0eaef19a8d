"""What goes into a join beside the rows, and what comes out: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.examples import Displays, ExampleRows


class Records(NamedTuple):
    """Where rows stood: M records of one input in the order of their offsets, and how many rows each holds."""

    offsets: NDArray[np.int64]  # (M,)
    rows: NDArray[np.int64]  # (M,)
    produced_ms: NDArray[np.int64]  # (M,) Kafka's time of the record
    promise_ms: NDArray[np.int64]  # (M,) no event earlier than this will follow; 0: no promise

    @classmethod
    def one(cls, offset: int, rows: int, produced_ms: int = 0, promise_ms: int = 0) -> Records:
        """A single record."""
        return cls(*(np.array([value]) for value in (offset, rows, produced_ms, promise_ms)))


@dataclass(frozen=True, slots=True)
class Reject:
    """One event that yields nothing; `payload` is its JSON, so that it can be looked at and sent again."""

    topic: str
    offset: int
    reason: str
    detail: str
    payload: bytes


class Resume(NamedTuple):
    """What a later life needs beside the inputs from the low water on; it travels with the committed offsets.

    examples : the offset of the examples topic from which on records to be read again may have led to something.
    settled : the offset from which on settled rows are still known.
    forgotten_ms : display time of the newest row that is not.
    watermark_ms : of the output.
    """

    examples: int = 0
    settled: int = 0
    forgotten_ms: int = 0
    watermark_ms: int = 0

    @property
    def recalled_from(self) -> int:
        """The offset from which on examples are recalled."""
        return min(self.examples, self.settled)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOutput:
    """What became known since the last poll.

    `counts` are increments. `watermark_ms` is 0 before there is one. `low_water` gives per topic the offset to commit
    together with `examples`, `displays` and `rejects`: everything before it is finished. The examples are the settled
    rows, then corrections, then conversions.
    """

    examples: ExampleRows | None
    displays: Displays | None = None
    rejects: list[Reject] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    watermark_ms: int = 0
    low_water: dict[str, int] = field(default_factory=dict)
    resume: Resume = field(default_factory=Resume)
