"""The embedding table's own measures, each in a fresh process on one core; snapshots: `tests.bench.snapshots`."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from learners.table.table import EmbeddingTable, TableConfig
from tests.bench import snapshots
from tests.bench.harness import Bound, Child, Measure, progress
from tests.bench.turns import serve

COLUMNS = 20
BATCH_ROWS = 4096
STEP_ROWS = 256
DIM = 16
MOST_KEPT = 1.05  # resident memory while ids churn: the largest, to that after a tenth of them


def measures(*, quick: bool = False) -> list[Measure]:
    """Look-ups, memory, growth and snapshots; ``quick`` takes fewer snapshots."""
    inserting, size, growth = _measured("look_ups"), _measured("bytes_per_key"), _measured("growth")
    found = [
        Measure(name=f"table look-up or insert, {draw}, keys/s", ours=value, target=Bound("ours", least=30e6))
        for draw, value in inserting.items()
    ]
    return [
        *found,
        Measure(name="table: key, column and index, B/key", ours=size["value"], target=Bound("ours", most=24)),
        Measure(name="the same with the last seen time", ours=size["with_last_seen"]),
        Measure(
            name="table growing at 10 M keys, longest step, ms", ours=growth["value"], target=Bound("ours", most=50)
        ),
        *snapshots.measures(quick=quick),
    ]


def churn(*, quick: bool = False) -> list[Measure]:
    """Resident memory while distinct ids come and go, as a ratio to that after the first tenth of them."""
    found = _measured("churn", ids=10_000_000 if quick else 100_000_000)
    name = "resident memory, largest after the first tenth of the ids / then"
    return [Measure(name=name, ours=found["value"], target=Bound("ours", most=MOST_KEPT))]


def _measured(turn: str, **arguments: int) -> dict[str, float]:
    core = min(os.sched_getaffinity(0))
    with Child("tests.bench.table", cores=[core]) as child:
        found = child.turn(turn, **arguments)
    progress(f"{turn}: " + ", ".join(f"{name} {value:,.4g}" for name, value in found.items()))
    return found


def _table(config: TableConfig | None = None) -> EmbeddingTable:
    return EmbeddingTable(DIM, np.arange(1, COLUMNS + 1), config or TableConfig(max_rows=None))


def _new_keys(generator: np.random.Generator, rows: int = BATCH_ROWS) -> NDArray[np.uint64]:
    return generator.integers(1 << 20, 1 << 63, (rows, COLUMNS)).astype(np.uint64)


def _filled(keys: int, generator: np.random.Generator) -> tuple[EmbeddingTable, NDArray[np.uint64]]:
    """A table of about ``keys`` random keys, and these."""
    table, known = _table(), []
    while len(table) < keys:
        known.append(_new_keys(generator))
        table.admit(known[-1])
    return table, np.concatenate(known).reshape(-1)


def look_ups(keys: int = 2_000_000, batches: int = 60) -> dict[str, float]:
    """Keys admitted a second of processor time at ``keys`` keys, medians of batches; uniform, and Zipf of 1.1."""
    generator = np.random.default_rng(0)
    table, known = _filled(keys, generator)
    share = (1 / np.arange(1, len(known) + 1) ** 1.1).cumsum()
    size = BATCH_ROWS * COLUMNS

    def drawn(how: Literal["uniform", "zipf"]) -> NDArray[np.uint64]:
        if how == "uniform":
            places = generator.integers(0, len(known), size)
        else:
            places = np.searchsorted(share, share[-1] * generator.random(size))
        return known[places].reshape(-1, COLUMNS)

    def seconds(keys: NDArray[np.uint64]) -> float:
        began = time.process_time()
        table.admit(keys)
        return time.process_time() - began

    return {how: size / float(np.median([seconds(drawn(how)) for _ in range(batches)])) for how in ("uniform", "zipf")}


def bytes_per_key(keys: int = 2_000_000) -> dict[str, float]:
    """Memory a key beside its row (vector, weight, accumulators) at the worst moment while ``keys`` keys double."""
    generator = np.random.default_rng(0)
    table, _ = _filled(keys, generator)
    worst = with_last_seen = 0.0
    while len(table) < 2 * keys:
        table.admit(_new_keys(generator, STEP_ROWS))
        memory, held = table.memory(), len(table)
        worst = max(worst, (memory.keys + memory.index) / held)
        with_last_seen = max(with_last_seen, (memory.keys + memory.last_seen + memory.index) / held)
    return {"value": worst, "with_last_seen": with_last_seen, "keys": len(table)}


def growth(keys: int = 10_000_000) -> dict[str, float]:
    """Milliseconds of one ``admit`` of 256 x 20 new keys each, while a table grows from ``keys`` by a half.

    Of the learning thread's processor time: others use the core too. The pages that it has to wait for are counted
    beside; providing them ahead in a thread would bring the longest step from 14 ms to 3.
    """
    generator = np.random.default_rng(0)
    table, _ = _filled(keys, generator)
    spent, faults, held = [], 0, len(table)
    while len(table) < 1.5 * held:
        batch = _new_keys(generator, STEP_ROWS)
        began, faults_before = time.thread_time(), _faults()
        table.admit(batch)
        spent.append(1000 * (time.thread_time() - began))
        faults += _faults() - faults_before
    return {
        "value": max(spent),
        "median_ms": float(np.median(spent)),
        "p999_ms": float(np.quantile(spent, 0.999)),
        "page_faults": faults,
        "steps": len(spent),
    }


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def churn_figures(ids: int = 100_000_000, *, live: int = 2_000_000) -> dict[str, float]:
    """Distinct ids sighted twice each, admitted, expired and taken out: resident memory at a tenth and the largest."""
    batch = BATCH_ROWS * COLUMNS
    table = _table(TableConfig(admit_after=2, expire_after_s=64.0, max_rows=None))
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
                progress(f"churn: {done} ids, {len(table)} rows, {resident >> 20} MiB")
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


if __name__ == "__main__":
    serve({"look_ups": look_ups, "bytes_per_key": bytes_per_key, "growth": growth, "churn": churn_figures})
