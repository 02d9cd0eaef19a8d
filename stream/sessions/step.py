"""How far a partition's session states have come, and the records that are folded into them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream.records.examples import ExampleRows

MAX_STEP_ROWS = 8_192  # some 9,000 states
_MIN_STEP_ROWS = 256
_SLOW_S, _FAST_S = 0.2, 0.05  # of a step; Redis answers nobody else for about half of it


class StepRows:
    """How many rows are folded in one step: fewer when a step takes long, more when it does not.

    On a busy machine a large step could exceed the time that the store is given to answer. It would be applied, but its
    answer lost, and be found out only by asking again.
    """

    def __init__(self) -> None:
        self.most = MAX_STEP_ROWS

    def took(self, rows: int, seconds: float) -> None:
        """A step of so many rows was applied."""
        if seconds > _SLOW_S:
            self.most = max(_MIN_STEP_ROWS, min(self.most, rows) // 2)
        elif seconds < _FAST_S and rows >= self.most:
            self.most = min(MAX_STEP_ROWS, self.most * 2)

    def failed(self) -> None:
        """A step was not answered."""
        self.most = max(_MIN_STEP_ROWS, self.most // 4)


@dataclass(slots=True)
class FoldedPartition:
    """Where a partition's states stand."""

    number: int
    fence: int | None = None  # where the store stands; None: it was not asked yet
    behind: bool = True  # the log holds records from the fence on that the inbox does not bring
    watermark_ms: int = 0  # the newest folded record's
    cut: int | None = None  # where the log was cut, until the store stands there


@dataclass(slots=True)
class FoldStep:
    """Consecutive records that are folded at once."""

    end: int  # the fence after it
    records: list[ExampleRows] = field(default_factory=list)
    rows: int = 0
    watermark_ms: int = 0

    def add(self, offset: int, decoded: tuple[ExampleRows, int] | None) -> None:
        """Add a record, its rows and watermark; None for one that means nothing here."""
        self.end = offset + 1
        if decoded is None:
            return
        rows, watermark_ms = decoded
        self.records.append(rows)
        self.rows += len(rows)
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
