"""Figures of the embedding table: ``python -m tests.bench.table [--ids 100000000]``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from learners.table import EmbeddingTable, TableConfig
from learners.table_store import NEW

COLUMNS = 20
BATCH_ROWS = 4096
DIM = 16
RATES = (0.005, 0.05)
EPOCH_MS = 1000


def _table(config: TableConfig | None = None) -> EmbeddingTable:
    return EmbeddingTable(DIM, np.arange(1, COLUMNS + 1), config)


def _new_keys(generator: np.random.Generator, rows: int = BATCH_ROWS) -> NDArray[np.uint64]:
    return generator.integers(1 << 20, 1 << 63, (rows, COLUMNS)).astype(np.uint64)


def _filled(keys: int, generator: np.random.Generator) -> tuple[EmbeddingTable, NDArray[np.uint64]]:
    """A table of about ``keys`` random keys, and these."""
    table, known = _table(), []
    while len(table) < keys:
        known.append(_new_keys(generator))
        table.admit(known[-1])
    return table, np.concatenate(known).reshape(-1)


def lookup_keys_per_second(
    draw: Literal["uniform", "zipf"] = "uniform",
    path: Literal["find", "admit"] = "admit",
    *,
    keys: int = 2_000_000,
    batches: int = 60,
) -> float:
    """Keys looked up a second of processor time at ``keys`` keys, the median of batches; Zipf of exponent 1.1."""
    generator = np.random.default_rng(0)
    table, known = _filled(keys, generator)
    look_up, seconds = getattr(table, path), []
    weight = 1 / np.arange(1, len(known) + 1) ** 1.1
    share = weight.cumsum() / weight.sum()
    for _ in range(batches):
        size = BATCH_ROWS * COLUMNS
        drawn = (
            generator.integers(0, len(known), size)
            if draw == "uniform"
            else np.searchsorted(share, generator.random(size))
        )
        batch = known[drawn].reshape(-1, COLUMNS)
        began = time.process_time()
        look_up(batch)
        seconds.append(time.process_time() - began)
    return BATCH_ROWS * COLUMNS / float(np.median(seconds))


def memory_figures(keys: int = 2_000_000) -> dict[str, float]:
    """Memory a key beside its row (vector, weight, accumulators, last seen): now, at the worst moment of growth."""
    table, _ = _filled(keys, np.random.default_rng(0))
    held, worst = len(table), 0.0
    generator = np.random.default_rng(1)
    for _ in range(keys // (BATCH_ROWS * COLUMNS) + 1):
        table.admit(_new_keys(generator))
        worst = max(worst, 8 * int(table._store.counters[NEW]) / len(table))
    index = 8 * int(table._store.counters[NEW]) / len(table)
    return {"value": 12.0 + worst, "keys": held, "head": 12.0, "index": index, "index_worst": worst}


def growth_figures(keys: int = 10_000_000, rows: int = 256) -> dict[str, float]:
    """Processor time of one ``admit`` of rows x 20 new keys each, while a table grows from ``keys`` by a half."""
    generator = np.random.default_rng(0)
    table, _ = _filled(keys, generator)
    spent, began_at = [], len(table)
    while len(table) < 1.5 * began_at:
        batch = _new_keys(generator, rows)
        began = time.process_time()
        table.admit(batch)
        spent.append(1000 * (time.process_time() - began))
    return {
        "value": max(spent),
        "keys": began_at,
        "keys_a_step": rows * COLUMNS,
        "median_ms": float(np.median(spent)),
        "p999_ms": float(np.quantile(spent, 0.999)),
    }


def snapshot_figures(keys: int = 2_000_000, folder: Path | None = None) -> dict[str, float]:
    """A snapshot between learning steps: the longest pause it made, and the time its copies, state and writing took."""
    generator = np.random.default_rng(0)
    table, known = _filled(keys, generator)
    gradients = np.zeros((BATCH_ROWS * COLUMNS, DIM + 1), np.float32)
    began = time.perf_counter()
    copy = table.begin_snapshot()
    pauses = [time.perf_counter() - began]
    while not copy.done:
        began = time.perf_counter()
        copy.step()
        pauses.append(time.perf_counter() - began)
        rows = table.admit(known[generator.integers(0, len(known), (256, COLUMNS))]).unique
        table.update(rows, gradients[: len(rows)], rates=RATES, epsilon=1e-8)
    table.end_snapshot()
    began = time.perf_counter()
    state = copy.state()
    made = time.perf_counter() - began
    with tempfile.TemporaryDirectory(dir=folder) as where, Path(where, "table").open("wb", buffering=0) as file:
        began = time.perf_counter()
        for array in state.values():
            file.write(array.data)
        written = time.perf_counter() - began
        os.fsync(file.fileno())
        synced = time.perf_counter() - began
    return {
        "seconds": sum(pauses) + made + written,
        "pause_ms": 1000 * max(pauses),
        "rows": len(state["keys"]),
        "begin_ms": 1000 * pauses[0],
        "copy_s": sum(pauses),
        "state_s": made,
        "write_s": written,
        "write_and_fsync_s": synced,
    }


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def churn_figures(ids: int = 100_000_000, *, live: int = 2_000_000) -> dict[str, float]:
    """Distinct ids sighted twice each, admitted, expired and taken out: resident memory at a tenth and the largest."""
    batch = BATCH_ROWS * COLUMNS
    table = _table(TableConfig(admit_after=2, expire_after_s=64.0))
    first, largest, done, began = 0, 0, 0, time.perf_counter()
    step_ms = 66_000 * batch // live  # so many ids are alive at a time
    for step in range(ids // batch + 1):
        keys = (np.arange(done + 1, done + batch + 1, dtype=np.uint64) << np.uint64(5)).reshape(-1, COLUMNS)
        table.advance(step * step_ms)
        table.admit(keys)
        table.admit(keys)
        table.take_changed()
        done += batch
        if step % 20 == 0:
            resident = resident_bytes()
            if done < ids / 10:
                first = max(first, resident)
            largest = max(largest, resident)
            if step % 200 == 0:
                print(f"churn: {done} ids, {len(table)} rows, {resident >> 20} MiB", file=sys.stderr)  # noqa: T201
    totals = table.vocabulary()
    return {
        "value": largest / first,
        "ids": done,
        "admitted": sum(column.admitted_total for column in totals),
        "expired": sum(column.expired_total for column in totals),
        "rows": len(table),
        "resident_after_a_tenth_mib": first / 2**20,
        "resident_largest_mib": largest / 2**20,
        "ids_per_second": done / (time.perf_counter() - began),
    }


def bytes_per_key() -> float:
    """Memory a key beside its row, at the worst moment of growth."""
    return memory_figures()["value"]


def growth_stall_ms() -> float:
    """The longest step of a growing table."""
    return growth_figures()["value"]


def snapshot_seconds_and_pause() -> tuple[float, float]:
    """Seconds that a snapshot of two million rows took in all, and the longest pause in ms."""
    figures = snapshot_figures()
    return figures["seconds"], figures["pause_ms"]


def churn_resident(ids: int = 100_000_000) -> float:
    """Largest resident memory over that after a tenth of the ids."""
    return churn_figures(ids)["value"]


def main(ids: Annotated[int, typer.Option(help="Distinct ids of the churn; 0: no churn.")] = 100_000_000) -> None:
    """Measure all and print one JSON object."""
    report: dict[str, object] = {
        f"{path}_{draw}_keys_per_second": lookup_keys_per_second(draw, path)
        for path in ("find", "admit")
        for draw in ("uniform", "zipf")
    }
    report["bytes_per_key"] = memory_figures()
    report["growth"] = growth_figures()
    report["snapshot"] = snapshot_figures()
    if ids:
        report["churn"] = churn_figures(ids)
    print(json.dumps(report, indent=1))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
