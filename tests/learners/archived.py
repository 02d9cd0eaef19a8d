"""Archived examples for the tests: a stream of random requests encoded with a real feature spec's widths."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from learners.kinds import SETTLED


def encoded(count: int, *, id_columns: int, dense: int, seed: int = 0) -> SimpleNamespace:
    """Examples whose label hangs on the first id and the first dense input; settled in a scrambled order."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, 20, (count, id_columns)).astype(np.uint64)
    numbers = generator.standard_normal((count, dense)).astype(np.float32)
    ts_ms = 1_700_000_000_000 + np.arange(count, dtype=np.int64) * 1000
    return SimpleNamespace(
        ids=ids,
        dense=numbers,
        impression_id=np.arange(1, count + 1, dtype=np.uint64),
        kind=np.full(count, SETTLED, np.uint8),
        label=((ids[:, 0] % 2 == 0) | (numbers[:, 0] > 1)).astype(np.uint8),
        ts_ms=ts_ms,
        known_ms=ts_ms + generator.integers(0, 60_000, count),
    )
