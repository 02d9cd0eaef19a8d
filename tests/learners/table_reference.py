"""The embedding table as one would write it down: a dictionary of rows, one key at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners.table.table import EmbeddingTable, TableConfig

M64 = (1 << 64) - 1


def mixed(key: int) -> int:
    """MurmurHash3's fmix64."""
    key ^= key >> 33
    key = key * 0xFF51AFD7ED558CCD & M64
    key ^= key >> 33
    key = key * 0xC4CEB9FE1A85EC53 & M64
    return key ^ key >> 33


def start_vector(seed: int, key: int, dim: int, scale: float) -> NDArray[np.float32]:
    """Sums of four 16-bit parts of SplitMix64's numbers, scaled to a standard deviation of ``scale``."""
    state, sums = mixed(key ^ seed * 0x9E3779B97F4A7C15 & M64), []
    for _ in range(dim):
        state = state + 0x9E3779B97F4A7C15 & M64
        bits = mixed(state)
        sums.append(sum(bits >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 131070)
    return np.array(sums, np.float32) * np.float32(scale * np.sqrt(3) / 65536)


@dataclass
class Row:
    """One key's row."""

    column: int
    seen: float
    values: NDArray[np.float32]
    accumulators: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))


class ReferenceTable:
    """The behaviour of EmbeddingTable; ``sightings`` is exact where the table's sketch may count too many."""

    def __init__(self, dim: int, default_keys: list[int], config: TableConfig) -> None:
        self.dim, self.default_keys, self.config = dim, default_keys, config
        self.rows = {key: Row(column, np.inf, np.zeros(dim + 1, np.float32)) for column, key in enumerate(default_keys)}
        self.sightings: dict[int, int] = {}
        self.changed: set[int] = set()
        self.removed: set[int] = set()
        self.epoch = 0
        self.totals = np.zeros((3, len(default_keys)), np.int64)  # admitted, expired, evicted

    def advance(self, event_ms: int) -> None:
        """Remove what is too old."""
        before, self.epoch = self.epoch, max(self.epoch, event_ms // self.config.epoch_ms)
        if 0 < before < self.epoch:
            for key in self.default_keys:
                self.decay(self.rows[key], self.epoch - before)
        kept = self.config.epochs_kept
        if kept is not None:
            self.drop([key for key, row in self.rows.items() if row.seen < self.epoch - kept], 1)

    def decay(self, row: Row, epochs: int) -> None:
        """Halve its accumulators for each half-life in so many epochs."""
        if self.config.accumulator_half_life_s is not None:
            half_lives = epochs * (self.config.epoch_ms / 1000 / self.config.accumulator_half_life_s)
            row.accumulators *= np.float32(0.5**half_lives)

    def drop(self, keys: list[int], why: int) -> None:
        """Remove keys, counted as expired (1) or evicted (2)."""
        for key in keys:
            self.totals[why, self.rows.pop(key).column] += 1
            self.changed.discard(key)
            self.removed.add(key)

    def find(self, keys: NDArray[np.uint64]) -> list[list[int]]:
        """The key whose row stands for each key; 0 for 0."""
        return [
            [key and (key if key in self.rows else self.default_keys[e]) for e, key in enumerate(line)]
            for line in keys.tolist()
        ]

    def admit(self, keys: NDArray[np.uint64]) -> list[list[int]]:
        """As ``find``, with sightings counted and keys admitted one after the other."""
        own, most = len(self.rows) - len(self.default_keys), self.config.max_rows
        if most is not None and own >= most:
            old = [key for key in self.rows if key not in self.default_keys]
            old.sort(key=lambda key: (self.rows[key].seen, mixed(key)))
            self.drop(old[: max(1, most // 32)], 2)
        return [[key and self.admit_one(key, e) for e, key in enumerate(line)] for line in keys.tolist()]

    def admit_one(self, key: int, column: int) -> int:
        """One sighting."""
        if key not in self.rows:
            if self.config.admit_after > 1:
                self.sightings[key] = self.sightings.get(key, 0) + 1
                if self.sightings[key] < self.config.admit_after:
                    return self.default_keys[column]
            most = self.config.max_rows
            if most is not None and len(self.rows) - len(self.default_keys) >= most:
                return self.default_keys[column]
            values = np.zeros(self.dim + 1, np.float32)
            values[: self.dim] = start_vector(self.config.seed, key, self.dim, self.config.init_scale)
            if self.config.start_from_default:
                values += self.rows[self.default_keys[column]].values
            self.rows[key] = Row(column, 0, values)
            self.totals[0, column] += 1
            self.changed.add(key)
        row = self.rows[key]
        if 0 < row.seen < self.epoch:
            self.decay(row, int(self.epoch - row.seen))
        row.seen = row.seen if row.seen == np.inf else self.epoch
        return key

    def update(
        self, key: int, gradient: NDArray[np.float32], rates: tuple[float, float], betas: tuple[float, float]
    ) -> None:
        """Adagrad on one row, in float32; the squares of even and of odd dimensions are added up apart."""
        row, dim, f = self.rows[key], self.dim, np.float32
        squares = [f(0), f(0)]
        for d in range(dim):
            at = d % 2 if d < dim - dim % 2 else 0
            squares[at] = f(squares[at] + f(gradient[d] * gradient[d]))
        row.accumulators[0] += f(f(squares[0] + squares[1]) * f(1 / dim))
        row.accumulators[1] += gradient[dim] * gradient[dim]
        step = f(f(rates[0]) / np.sqrt(f(f(betas[0]) + row.accumulators[0])))
        row.values[:dim] -= step * gradient[:dim]
        row.values[dim] -= f(f(f(rates[1]) / np.sqrt(f(f(betas[1]) + row.accumulators[1]))) * gradient[dim])
        self.changed.add(key)

    def take_changed(self) -> tuple[list[int], list[NDArray[np.float32]], list[int]]:
        """Changed keys, their values, and removed keys."""
        keys, gone = sorted(self.changed), sorted(self.removed - self.rows.keys())
        self.changed, self.removed = set(), set()
        return keys, [self.rows[key].values for key in keys], gone


def assert_same(table: EmbeddingTable, reference: ReferenceTable) -> None:
    """Every array of the table's state, its statistics and its length say what the reference says."""
    state, keys = table.state(), sorted(reference.rows)
    rows = [reference.rows[key] for key in keys]
    assert state["keys"].tolist() == keys
    assert state["values"].tobytes() == np.array([row.values for row in rows], np.float32).tobytes()
    assert state["accumulators"].tobytes() == np.array([row.accumulators for row in rows], np.float32).tobytes()
    assert state["seen"].tolist() == [2**32 - 1 if row.seen == np.inf else row.seen for row in rows]
    assert state["column"].tolist() == [row.column for row in rows]
    assert state["pending"].tolist() == sorted(reference.changed)
    assert state["removed"].tolist() == sorted(reference.removed - reference.rows.keys())
    assert len(table) == len(keys)
    for statistics in table.vocabulary():
        column = statistics.column
        held = sum(row.column == column for row in rows)
        assert statistics == (column, held, *reference.totals[:, column].tolist())
