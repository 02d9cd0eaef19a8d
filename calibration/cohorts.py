"""Sums by cohort of display time: ten seconds long while young, an hour when old."""

from __future__ import annotations

import struct
import zlib
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from calibration.distrust import MOST_BYTES, check_counts, check_times, inflated

COHORT_MS: Final = 10_000
_LENGTHS_MS: Final = np.array([COHORT_MS, 60_000, 600_000, 3_600_000], np.int64)
_LENGTH_FROM_AGE_MS: Final = np.array([0, 120_000, 720_000, 21_600_000], np.int64)
_FOLD_ROWS: Final = 4_096
_HEADER: Final = struct.Struct("<4sHHIqqI")  # magic, format, columns, rows, now, since, CRC-32 of the rest
_MAGIC: Final = b"MSCT"
_FORMAT: Final = 1


def cohorts_of(ts_ms: NDArray[np.int64], now_ms: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and length in ms of the cohorts that displays at ``ts_ms`` belong to at ``now_ms``.

    A function of the two times alone, so that tables of any workers have the same cohorts.
    """
    start, length = ts_ms // COHORT_MS * COHORT_MS, np.full(ts_ms.shape, COHORT_MS, np.int64)
    for longer, age in zip(_LENGTHS_MS[1:], _LENGTH_FROM_AGE_MS[1:], strict=True):
        coarse = ts_ms // longer * longer
        old = coarse + longer + age <= now_ms
        start, length = np.where(old, coarse, start), np.where(old, longer, length)
    return start, length


class CohortTable:
    """C fixed-point sums by cohort, path of slices and bin, kept sparse.

    Sums are int64, so that additions commute exactly: tables of parallel workers that have come to the same time merge
    to the very bits that one worker would have.

    Attributes
    ----------
    now_ms : up to which time all is known; cohorts lengthen by it.
    since_ms : what was displayed before is not counted.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.now_ms = 0
        self.since_ms = 0
        self._start: NDArray[np.int64] = np.zeros(0, np.int64)
        self._cell: NDArray[np.int64] = np.zeros(0, np.int64)  # path << 10 | bin
        self._sums: NDArray[np.int64] = np.zeros((0, columns), np.int64)
        self._fresh: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._fresh_rows = 0

    def __len__(self) -> int:
        self._fold()
        return len(self._start)

    def add(
        self, ts_ms: NDArray[np.int64], path: NDArray[np.int64], bins: NDArray[np.int64], sums: NDArray[np.int64]
    ) -> None:
        """Count B rows: display times, paths and bins (0..1023), each (B,), and what they add, (B, C)."""
        if (fits := ts_ms >= self.since_ms).all():
            self._fresh.append((cohorts_of(ts_ms, self.now_ms)[0], path << 10 | bins, sums))
            self._fresh_rows += len(ts_ms)
        else:
            self.add(ts_ms[fits], path[fits], bins[fits], sums[fits])
        if self._fresh_rows > _FOLD_ROWS:
            self._fold()

    def advance(self, now_ms: int, keep_ms: int) -> None:
        """Lengthen what has grown old, and drop the cohorts that ended ``keep_ms`` before ``now_ms`` or earlier."""
        if now_ms <= self.now_ms:
            return
        lengthens = now_ms // COHORT_MS > self.now_ms // COHORT_MS
        self.now_ms = now_ms
        if not lengthens:
            return
        self._fold()
        self._start = cohorts_of(self._start, now_ms)[0]
        self.drop_before(now_ms // COHORT_MS * COHORT_MS - keep_ms)

    def drop_before(self, since_ms: int) -> None:
        """Forget cohorts that ended by ``since_ms``, and count nothing more of them."""
        self.since_ms = max(self.since_ms, since_ms)
        self._fold()
        start, length = cohorts_of(self._start, self.now_ms)
        self._fold(start + length > self.since_ms, again=True)

    def merge(self, other: CohortTable) -> None:
        """Add another worker's sums."""
        if other.columns != self.columns:
            raise ValueError(f"cohorts of {other.columns} and {self.columns} sums do not add: run one release.")
        other._fold()
        self._fold()
        self.now_ms = max(self.now_ms, other.now_ms)
        self._fresh.append((other._start, other._cell, other._sums))
        self._fold()
        self._start = cohorts_of(self._start, self.now_ms)[0]
        self._fold(again=True)

    def rename_paths(self, paths: NDArray[np.int64], name: int) -> None:
        """Count the rows of some paths under one."""
        self._fold()
        renamed = np.isin(self.paths(), paths)
        self._cell = np.where(renamed, name << 10 | (self._cell & 1023), self._cell)
        self._fold(again=True)

    def starts(self) -> NDArray[np.int64]:
        """(M,) starts of the cohorts, ascending, one for every sum."""
        self._fold()
        return self._start

    def lengths(self) -> NDArray[np.int64]:
        """(M,) lengths of the cohorts in ms."""
        return cohorts_of(self.starts(), self.now_ms)[1]

    def paths(self) -> NDArray[np.int64]:
        """(M,) paths."""
        self._fold()
        return self._cell >> 10

    def bins(self) -> NDArray[np.int64]:
        """(M,) bins."""
        self._fold()
        return self._cell & 1023

    def sums(self) -> NDArray[np.int64]:
        """(M, C) sums."""
        self._fold()
        return self._sums

    def to_bytes(self) -> bytes:
        """All of it: differences of neighbouring starts and cells, and the sums, compressed by byte planes."""
        self._fold()
        columns = [np.diff(self._start, prepend=0), np.diff(self._cell, prepend=0), *self._sums.T]
        planes = b"".join(_planes(column) for column in columns)
        packed = zlib.compress(planes, 1)
        return (
            _HEADER.pack(
                _MAGIC, _FORMAT, self.columns, len(self._start), self.now_ms, self.since_ms, zlib.crc32(packed)
            )
            + packed
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; ValueError when it is something else, cut short or damaged."""
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise ValueError(f"cohorts of {len(data)} bytes start with {data[:4]!r}, expected {_MAGIC!r}: drop them.")
        _, fmt, columns, rows, now_ms, since_ms, crc = _HEADER.unpack_from(data)
        packed = data[_HEADER.size :]
        if fmt != _FORMAT or zlib.crc32(packed) != crc:
            raise ValueError(
                f"cohorts of format {fmt} with CRC {zlib.crc32(packed):08x}, expected format {_FORMAT} and CRC "
                f"{crc:08x}: they were cut or damaged; drop them."
            )
        size = (columns + 2) * 8 * rows
        if size > MOST_BYTES:
            raise ValueError(f"{rows} cohorts of {columns} sums are more than {MOST_BYTES} bytes: drop them.")
        planes = np.frombuffer(inflated(packed, size + 1), np.uint8).reshape(columns + 2, 8, rows)
        found = [np.ascontiguousarray(plane.T).view("<i8")[:, 0].astype(np.int64) for plane in planes]
        table = cls(columns)
        table._start, table._cell = np.cumsum(found[0]), np.cumsum(found[1])
        table._sums = np.stack(found[2:], axis=1) if rows else np.zeros((0, columns), np.int64)
        table.now_ms, table.since_ms = now_ms, since_ms
        table._check()
        return table

    def _check(self) -> None:
        """Raise ValueError for what no worker has counted."""
        for name, times_ms in (("starts", self._start), ("now_ms", self.now_ms), ("since_ms", self.since_ms)):
            check_times(name, times_ms)
        check_counts("sums", np.abs(self._sums))
        if len(self._cell) and int(self._cell.min()) < 0:
            raise ValueError(f"a cell of a calibration state is {self._cell.min()}, below 0: drop the state.")
        ordered = (self._start[1:] > self._start[:-1]) | (
            (self._start[1:] == self._start[:-1]) & (self._cell[1:] > self._cell[:-1])
        )
        if not ordered.all():
            raise ValueError("cohorts of a calibration state are out of order: it was damaged; drop it.")

    def _fold(self, kept: NDArray[np.bool_] | None = None, *, again: bool = False) -> None:
        """Take in the fresh rows, drop all but ``kept``, and add up what is of one cell and one cohort."""
        if not self._fresh and not again:
            return
        parts = [(self._start, self._cell, self._sums), *self._fresh]
        self._fresh, self._fresh_rows = [], 0
        start, cell, sums = (np.concatenate(column) for column in zip(*parts, strict=True))
        if kept is not None:
            start, cell, sums = start[kept], cell[kept], sums[kept]
        order = np.lexsort((cell, start))
        start, cell = start[order], cell[order]
        first = np.flatnonzero(np.append(True, (np.diff(start) != 0) | (np.diff(cell) != 0)))[: len(start)]
        self._start, self._cell = start[first], cell[first]
        self._sums = np.add.reduceat(sums[order], first, axis=0) if len(start) else sums


def _planes(column: NDArray[np.int64]) -> bytes:
    """The bytes of (M,) numbers, the lowest of all first: most planes are zeros."""
    return np.ascontiguousarray(column.astype("<i8")).view(np.uint8).reshape(-1, 8).T.tobytes()
