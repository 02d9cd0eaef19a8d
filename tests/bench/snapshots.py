"""Snapshots as the stream's learner takes them: between and beside its steps, to a folder on the disk.

The learner is a real DeepFM that takes one step after the other without a break; a pause is what a step lasted, and
the time since the one before, beyond the usual.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.deepfm.model_state import State
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.snapshots.snapshot import Snapshot, load_snapshot, write_snapshot
from stream.learn.snapshots import copied
from tests.bench.harness import Bound, Child, Measure, median, progress
from tests.bench.turns import serve

COLUMNS = 20
STEP_ROWS = 128  # as the stream learns by default
USUAL_STEPS = 500  # before each snapshot
_SHAPE = ModelShape(
    spec_name="bench",
    spec_hash="0" * 16,
    id_columns=COLUMNS,
    embedded=tuple(range(COLUMNS)),
    names=tuple(f"f{column}" for column in range(COLUMNS)),
    dense=0,
)


def measures(*, quick: bool = False) -> list[Measure]:
    """Time and longest pause of a snapshot of two million rows, on all cores as a deployed learner has them.

    Learner and writer need a core each: on a machine that others use, the core time tells more than the seconds.
    """
    cores = sorted(os.sched_getaffinity(0))
    with Child("tests.bench.snapshots", cores=cores) as child:
        found = [child.turn("snapshot") for _ in range(3 if quick else 7)]
    for one in found:
        progress("snapshot: " + ", ".join(f"{name} {value:.4g}" for name, value in one.items()))
    seconds, pauses = ([one[name] for one in found] for name in ("seconds", "pause_ms"))
    return [
        Measure(name="snapshot of 2 M rows, fsync included, s", ours=median(seconds), target=Bound("ours", most=2)),
        Measure(name="the least disturbed one, s", ours=min(seconds)),
        Measure(name="their core time beside the learning, s", ours=median(one["core_s"] for one in found)),
        Measure(name="longest pause of learning, median, ms", ours=median(pauses), target=Bound("ours", most=50)),
        Measure(name="the longest of all, ms", ours=max(pauses)),
    ]


class Learning:
    """A model of ``rows`` rows that learns until it is told to stop."""

    def __init__(self, rows: int = 2_000_000) -> None:
        self._generator = np.random.default_rng(0)
        self.model = DeepFM(DeepFMConfig(), _SHAPE)
        known = []
        while len(self.model.table) < rows:
            known.append(self._generator.integers(1, 1 << 63, (4096, COLUMNS)).astype(np.uint64))
            self.model.table.admit(known[-1])
        self._known = np.concatenate(known).reshape(-1)
        self.model.table.take_changed()  # as after a publication: a snapshot follows one
        self.model.table.load_snapshot_kernels()
        self.version = 0
        self.stopped = False
        self._learning_s = 0.0  # of the thread's processor time

    def step(self) -> None:
        """Learn from random rows."""
        began = time.thread_time()
        ids = self._known[self._generator.integers(0, len(self._known), (STEP_ROWS, COLUMNS))]
        self.model.learn_many(Rows(ids, np.zeros((STEP_ROWS, 0), np.float32)), ids[:, 0] % 2 == 0)
        self._learning_s += time.thread_time() - began

    async def gaps(self) -> NDArray[np.float64]:
        """Learn until ``stopped``; the milliseconds from the end of each step to that of the next."""
        ends = [time.perf_counter()]
        while not self.stopped:
            self.step()
            ends.append(time.perf_counter())
            await asyncio.sleep(0)
        return 1000 * np.diff(ends)

    async def snapshot(self, root: Path) -> dict[str, float]:
        """One snapshot, from its beginning to its folder, while learning goes on."""
        usual = []
        for _ in range(USUAL_STEPS):
            began = time.perf_counter()
            self.step()
            usual.append(1000 * (time.perf_counter() - began))
        self.stopped = False
        self.version += 1
        learning = asyncio.create_task(self.gaps())
        await asyncio.sleep(0)
        began, used, learned = time.perf_counter(), time.process_time(), self._learning_s
        copy = self.model.begin_snapshot()
        begun = time.perf_counter()
        taken = await copied(copy)
        written = await asyncio.to_thread(lambda: write_snapshot(str(root), self._snapshot(taken)))
        ended, core_s = time.perf_counter(), time.process_time() - used - (self._learning_s - learned)
        self.stopped = True
        gaps = await learning
        del copy
        return {
            "seconds": ended - began,
            "core_s": core_s,
            "pause_ms": float(gaps.max() - np.median(usual)),
            "begin_ms": 1000 * (begun - began),
            "usual_step_ms": float(np.median(usual)),
            "longest_usual_step_ms": max(usual),
            "steps": len(gaps),
            "rows": len(load_snapshot(written.url).state["table.keys"]) if self.version == 1 else len(self.model.table),
        }

    def _snapshot(self, state: State) -> Snapshot:
        return Snapshot(
            version=self.version,
            created_from="stream",
            watermark_ms=0,
            newest_event_ms=0,
            shape=self.model.shape,
            config=self.model.config,
            state=state,
        )


def _serve() -> None:
    learning = Learning()
    with tempfile.TemporaryDirectory(prefix="bench-snapshots-") as name:
        serve({"snapshot": lambda: asyncio.run(learning.snapshot(Path(name)))})


if __name__ == "__main__":
    _serve()
