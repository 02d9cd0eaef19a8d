"""The embedding table's own measures, each in a fresh process on one core; `tests.bench.table` does the measuring."""

from __future__ import annotations

import os

from tests.bench.harness import Bound, Child, Measure, progress
from tests.bench.turns import serve


def measures(*, quick: bool = False) -> list[Measure]:
    """Look-ups, memory, growth and snapshots at two million keys; ``quick`` measures the same."""
    del quick
    lookups, size = _measured("lookup_keys_per_second"), _measured("bytes_per_key")
    stall, snapshot = _measured("growth_stall_ms"), _measured("snapshot_figures")
    written_s = snapshot["copy_s"] + snapshot["state_s"] + snapshot["write_and_fsync_s"]
    return [
        Measure(name="table look-up or insert, keys/s", ours=lookups["value"], target=Bound("ours", least=30e6)),
        Measure(name="table beside the rows, B/key", ours=size["value"], target=Bound("ours", most=24)),
        Measure(name="table growth, longest stall, ms", ours=stall["value"]),
        Measure(name="snapshot of 2 M rows, fsync included, s", ours=written_s, target=Bound("ours", most=1)),
        Measure(name="its longest pause of learning, ms", ours=snapshot["pause_ms"], target=Bound("ours", most=50)),
    ]


def churn(*, quick: bool = False) -> list[Measure]:
    """Resident memory while distinct ids come and go, as a ratio to that after the first tenth of them."""
    found = _measured("churn_resident", ids=10_000_000 if quick else 100_000_000)
    name = "resident memory, largest after the first tenth of the ids / then"
    return [Measure(name=name, ours=found["value"], target=Bound("ours", most=1.05))]


def _measured(turn: str, **arguments: int) -> dict[str, float]:
    core = min(os.sched_getaffinity(0))
    with Child("tests.bench.embedding_table", cores=[core]) as child:
        found = child.turn(turn, **arguments)
    progress(f"{turn}: " + ", ".join(f"{name} {value:,.4g}" for name, value in found.items()))
    return found


def _serve() -> None:
    from tests.bench.table import (  # the parent must not load the table: it would share the child's core
        bytes_per_key,
        churn_resident,
        growth_stall_ms,
        lookup_keys_per_second,
        snapshot_figures,
    )

    serve(
        {
            "lookup_keys_per_second": lambda: {"value": lookup_keys_per_second()},
            "bytes_per_key": lambda: {"value": bytes_per_key()},
            "growth_stall_ms": lambda: {"value": growth_stall_ms()},
            "snapshot_figures": snapshot_figures,
            "churn_resident": lambda ids: {"value": churn_resident(ids)},
        }
    )


if __name__ == "__main__":
    _serve()
