"""Examples on their way into the archive: gathered by partition, cut into part files. No clock, no broker, no files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from learners.examples.archive_parts import LogRange
from stream.records.examples import ExampleRows, concat
from stream.records.validity import faults, impossible_scores, unfaulted

_LAST_DATE_MS = 253_402_300_799_999  # the end of the year 9999, after which there are no dates


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveConfig:
    """When a part file is closed, whichever comes first; a stop closes it, too."""

    archive_rows: Annotated[int, Ge(1)] = 200_000
    """Rows of an archived file: some 30 MB on the disk and 90 MB in memory, for each partition."""
    archive_interval_s: Annotated[float, Gt(0)] = 900.0
    """Event time of an archived file: the files of one interval end with it."""

    def __post_init__(self) -> None:
        if self.archive_rows < 1 or not self.archive_interval_s > 0:
            raise ValueError(
                f"archive_rows={self.archive_rows} must be at least 1 and archive_interval_s={self.archive_interval_s} "
                "positive: no file would ever be closed. Set MILLSTREAM_ARCHIVE_ROWS (200000) and "
                "MILLSTREAM_ARCHIVE_INTERVAL_S (900)."
            )


@dataclass(frozen=True, slots=True, eq=False)
class ArchivePart:
    """The N learnable examples of a range of one partition."""

    log_range: LogRange
    rows: ExampleRows
    offset: NDArray[np.int64]  # (N,) of the record that each row came in
    ordinal: NDArray[np.int32]  # (N,) index of the row in its record

    @property
    def day(self) -> date:
        """The UTC day of its first event."""
        known_ms = min(max(int(self.rows.known_ms.min()), 0), _LAST_DATE_MS)
        return datetime.fromtimestamp(known_ms / 1000, UTC).date()


class PartBuffer:
    """What was read of a partition and is in no file yet: its records from ``first_offset`` up to ``next_offset``."""

    def __init__(self, partition: int, start: int, config: ArchiveConfig) -> None:
        self.partition = partition
        self.first_offset = self.next_offset = start
        self._config = config
        self._interval: int | None = None  # the number of the newest interval of event time since the last part
        self._rows: list[ExampleRows] = []
        self._offset: list[int] = []
        self._ordinal: list[NDArray[np.int32]] = []

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    @property
    def first_waiting(self) -> int:
        """The offset of the first row that is in no file; the next one where all are."""
        return self._offset[0] if self._offset else self.next_offset

    def skip_to(self, offset: int) -> None:
        """Nothing before ``offset`` is to come any more."""
        self.next_offset = max(self.next_offset, offset)

    def add(self, rows: ExampleRows, offset: int, watermark_ms: int) -> list[ArchivePart]:
        """Take a record; the parts that are complete. Rows that no model can learn are the learner's to reject.

        Nor is a row taken whose scores none has: it would make a file of others unreadable.
        """
        interval = int(watermark_ms // (self._config.archive_interval_s * 1000))
        done = self.take() if self._interval is not None and interval > self._interval else []
        self._interval = interval if self._interval is None else max(interval, self._interval)
        kept = unfaulted(len(rows), faults(rows)) & ~impossible_scores(rows)
        if kept.any():
            self._rows.append(rows.take(kept))
            self._offset.append(offset)
            self._ordinal.append(np.flatnonzero(kept).astype(np.int32))
        self.next_offset = offset + 1
        return done + (self.take() if len(self) >= self._config.archive_rows else [])

    def take(self) -> list[ArchivePart]:
        """All that waits as one part, from where the last one ended; none without a row."""
        if not self._rows:
            return []
        part = ArchivePart(
            LogRange(self.partition, self.first_offset, self.next_offset),
            concat(self._rows),
            np.repeat(np.array(self._offset, np.int64), [len(ordinal) for ordinal in self._ordinal]),
            np.concatenate(self._ordinal),
        )
        self.first_offset = self.next_offset
        self._rows, self._offset, self._ordinal, self._interval = [], [], [], None
        return [part]
