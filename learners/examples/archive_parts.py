"""The part files of an archive: which range of the examples topic each holds."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import NamedTuple, Self

_PART = re.compile(r"p(\d+)-(\d{20})-(\d{20})\.parquet")


class ArchiveError(ValueError):
    """An archive that cannot be written or used."""


class LogRange(NamedTuple):
    """The records of one partition from ``first_offset`` up to, but not including, ``next_offset``."""

    partition: int
    first_offset: int
    next_offset: int

    def path(self, folder: Path, day: date) -> Path:
        """Where its part file lies. The day is for people and for deleting old parts; nothing is read from it."""
        name = f"p{self.partition}-{self.first_offset:020d}-{self.next_offset:020d}.parquet"
        return folder / f"date={day.isoformat()}" / name

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The range that a part file's name says; None for any other file."""
        match = _PART.fullmatch(path.name)
        return cls(*(int(number) for number in match.groups())) if match else None


def archived_up_to(folder: Path) -> dict[int, int]:
    """Partition → the first offset that no part file under ``folder`` holds, from which an archiver goes on."""
    found: dict[int, int] = {}
    for path in folder.rglob("*.parquet"):
        if log_range := LogRange.of(path):
            found[log_range.partition] = max(found.get(log_range.partition, 0), log_range.next_offset)
    return found
