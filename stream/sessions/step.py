"""How far a partition's session states have come, and the records that are folded into them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream.records.examples import ExampleRows


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
