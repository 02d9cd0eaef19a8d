"""What goes into a join beside the rows, and what comes out: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.join.arrival import UNBOUNDED_MS
from stream.join.late import LateClicks
from stream.join.rejects import Reject
from stream.records.examples import ExampleRows


class Records(NamedTuple):
    """Where rows stood: M records of one input in the order of their offsets, and how many rows each holds."""

    offsets: NDArray[np.int64]  # (M,)
    rows: NDArray[np.int64]  # (M,)
    produced_ms: NDArray[np.int64]  # (M,) Kafka's time of the record
    promise_ms: NDArray[np.int64]  # (M,) no event earlier than this will follow; 0: no promise
    until_ms: NDArray[np.int64]  # (M,) nothing in it moves its input's time beyond this (`stream.join.arrival`)

    @classmethod
    def one(
        cls, offset: int, rows: int, produced_ms: int = 0, promise_ms: int = 0, until_ms: int = UNBOUNDED_MS
    ) -> Records:
        """A single record."""
        return cls(*(np.array([value]) for value in (offset, rows, produced_ms, promise_ms, until_ms)))


class Resume(NamedTuple):
    """What a later life needs beside the inputs from the committed offsets on; it travels with these.

    examples : the offset of the examples topic from which on it holds exposures whose clicks still count.
    forgotten_ms : display time of the newest row that is no longer known.
    watermark_ms : of the output.
    """

    examples: int = 0
    forgotten_ms: int = 0
    watermark_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOutput:
    """What became known since the last poll.

    `counts` are increments. `watermark_ms` is 0 before there is one. `offsets` gives per topic the offset to commit
    together with `examples` and `rejects`: everything before it is finished. The examples are exposures in the order of
    display, then clicks, then conversions, and at the end `spare` rows that are not filled yet: `late` are clicks whose
    examples must be stored in the same go, see `stream.join.late.with_late_clicks`.
    """

    examples: ExampleRows | None
    spare: int = 0
    late: LateClicks | None = None
    rejects: list[Reject] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    watermark_ms: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    resume: Resume = field(default_factory=Resume)
