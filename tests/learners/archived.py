"""Archived examples for the tests: a stream of random requests encoded with a real feature spec's widths."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.examples.examples import Examples
from learners.examples.kinds import CLICK, EXPOSURE
from learners.features.rows import Rows
from tests.learners.batches import SHAPE


def encoded(count: int, *, id_columns: int, dense: int, seed: int = 0) -> SimpleNamespace:
    """Labelled exposures: the label hangs on the first id and the first dense input, and is known up to 60 s later."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, 20, (count, id_columns)).astype(np.uint64)
    numbers = generator.standard_normal((count, dense)).astype(np.float32)
    ts_ms = 1_700_000_000_000 + np.arange(count, dtype=np.int64) * 1000
    return SimpleNamespace(
        ids=ids,
        dense=numbers,
        impression_id=np.arange(1, count + 1, dtype=np.uint64),
        user_key=ids[:, 0],
        kind=np.full(count, EXPOSURE, np.uint8),
        label=((ids[:, 0] % 2 == 0) | (numbers[:, 0] > 1)).astype(np.uint8),
        ts_ms=ts_ms,
        known_ms=ts_ms + generator.integers(0, 60_000, count),
    )


def examples(count: int = 600, seed: int = 0) -> Examples:
    """The same as an archive of the small shape holds them."""
    made = encoded(count, id_columns=SHAPE.id_columns, dense=SHAPE.dense, seed=seed)
    names = ("impression_id", "user_key", "kind", "label", "ts_ms", "known_ms")
    columns: dict[str, NDArray[Any]] = {name: getattr(made, name) for name in names}
    return Examples(
        spec_name="toy",
        spec_hash=SHAPE.spec_hash,
        rows=Rows(made.ids, made.dense),
        columns=columns | {"weight": np.ones(count, np.float32)},
    )


def as_events(given: Examples) -> Examples:
    """The same as the stream tells it: each display, and a row for each click when it comes, in the order of events."""
    clicked = np.flatnonzero(given.columns["label"] == 1)
    count = len(given)
    made = given.take(np.concatenate((np.arange(count), clicked)))
    columns = {name: column.copy() for name, column in made.columns.items()}
    columns["label"][:] = 0
    columns["kind"][count:] = CLICK
    columns["known_ms"][:count] = columns["ts_ms"][:count]
    order = np.argsort(columns["known_ms"], kind="stable")
    return replace(made, columns=columns).take(order)
