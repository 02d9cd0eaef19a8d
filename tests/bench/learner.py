"""The learner against the field's libraries: speed, log loss after one pass, share of the roof, threads."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.bench.harness import PEER_PYTHON, Bound, Child, Measure, median, progress
from tests.bench.rows import BATCH, SHIPPED, click_rows, save, step_megaflop

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Entrant:
    """How to start one contestant; ``ratio`` is how many times as fast as it we must be."""

    name: str
    module: str
    argument: str
    rates: tuple[float, ...]  # learning rates tried for the log loss; the best counts
    ratio: float = 1.0

    def start(self, folder: Path, cores: list[int], *, shipped: bool = False) -> Child:
        """A process of its own, in the environment of the project or of the peers; ``shipped``: at our defaults."""
        python = sys.executable if self.name == OURS else PEER_PYTHON
        sizes = {SHIPPED: "1"} if shipped else {}
        return Child(self.module, str(folder), self.argument, cores=cores, python=python, environment=sizes)


US = Entrant(OURS, "tests.bench.ours", "1", rates=(0.00125, 0.0025, 0.005))
US_SHIPPED = Entrant(OURS, "tests.bench.ours_shipped", "", rates=())
_PEER_RATES = (3e-4, 1e-3, 3e-3)  # Adam; 1e-2 is far worse
PEERS = (
    Entrant("deepctr-torch fit, defaults", "tests.bench.peers.deepctr", "fit", _PEER_RATES, ratio=10),
    Entrant("deepctr-torch step, best case", "tests.bench.peers.deepctr", "step", _PEER_RATES, ratio=7),
    Entrant("FuxiCTR train_step", "tests.bench.peers.fuxi", "", _PEER_RATES, ratio=9),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    train: int  # rows of the one pass
    held_out: int  # rows after it, for the log loss
    rounds: int
    our_batches: int  # a turn
    peer_batches: int


FULL = Size(train=100 * BATCH, held_out=32 * BATCH, rounds=7, our_batches=32, peer_batches=8)
QUICK = Size(train=32 * BATCH, held_out=8 * BATCH, rounds=3, our_batches=16, peer_batches=4)


def measures(*, quick: bool = False) -> list[Measure]:
    """All of them; about eight minutes on an idle machine, ``quick`` two."""
    size = QUICK if quick else FULL
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        progress(f"rows: {size.train + size.held_out:,}")
        save(click_rows(size.train + size.held_out), folder)
        return [
            *speed(folder, size, cores),
            *shipped_speed(folder, size, cores),
            *threads(folder, size, cores),
            *quality(folder, size, cores),
        ]


def speed(folder: Path, size: Size, cores: list[int]) -> list[Measure]:
    """Rows per core second, ours before each peer in every round, and the roof of the same minutes.

    On an idle machine a core second is a second; on a shared one, what others do on the core is nobody's here.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        us = stack.enter_context(US.start(folder, cores[:1]))
        them = {peer: stack.enter_context(peer.start(folder, cores[:1])) for peer in PEERS}
        roof = stack.enter_context(Child("tests.bench.roof", cores=cores[:1]))
        for child in (us, *them.values()):
            child.turn("speed", batches=2)  # compiles, allocates
        for turn in range(size.rounds):
            for precision, gflops in roof.turn("gemm").items():
                found[precision].append(gflops)
            for peer, child in them.items():
                found[OURS].append(_rows_per_second(us, size.our_batches))
                found[peer.name].append(_rows_per_second(child, size.peer_batches))
            progress(f"speed {turn + 1}/{size.rounds}: {_newest(found)}")
    ours = median(found[OURS])
    ratios = [
        Measure(
            name=f"learning, rows/s; {peer.name}",
            ours=ours,
            peer=median(found[peer.name]),
            target=Bound("ratio", least=peer.ratio),
        )
        for peer in PEERS
    ]
    return [*ratios, *_shares(ours, median(found["fp32"]), median(found["bf16"]))]


def shipped_speed(folder: Path, size: Size, cores: list[int]) -> list[Measure]:
    """Impressions per core second at the shipped sizes: the whole learning loop against the peers' training steps."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        us = stack.enter_context(US_SHIPPED.start(folder, cores[:1], shipped=True))
        them = {peer: stack.enter_context(peer.start(folder, cores[:1], shipped=True)) for peer in PEERS}
        for child in (us, *them.values()):
            child.turn("speed", batches=8)
        for turn in range(size.rounds):
            for peer, child in them.items():
                found[OURS].append(_rows_per_second(us, 4 * size.our_batches))
                found[peer.name].append(_rows_per_second(child, size.peer_batches))
            progress(f"shipped sizes {turn + 1}/{size.rounds}: {_newest(found)}")
    names = [peer.name for peer in PEERS]
    ours = median(found[OURS])
    return [Measure(name=f"shipped sizes, impressions/s; {one}", ours=ours, peer=median(found[one])) for one in names]


def _newest(found: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{name} {rates[-1]:,.0f}" for name, rates in found.items())


def _shares(rows_per_second: float, fp32: float, bf16: float) -> list[Measure]:
    """75 % of the fp32 roof, or half of the bf16 roof where bf16 is the faster format, will do."""
    gflops = rows_per_second * step_megaflop() / 1e3
    in_fp32, in_bf16 = Bound("share of roof", least=0.75), Bound("share of roof", least=0.5)
    half_of_bf16 = bf16 > fp32 and gflops >= 0.5 * bf16
    return [
        Measure(
            name="MLP, GFLOP/s; fp32 roof",
            ours=gflops,
            roof=fp32,
            target=None if half_of_bf16 else in_fp32,
        ),
        Measure(
            name="MLP, GFLOP/s; bf16 roof",
            ours=gflops,
            roof=bf16,
            target=in_bf16 if half_of_bf16 else None,
        ),
    ]


def threads(folder: Path, size: Size, cores: list[int]) -> list[Measure]:
    """Two threads on two cores against one on one, by the wall clock: this needs an idle machine."""
    if len(cores) < 2:
        progress("threads: not measured, only one core is allowed")
        return []
    found: tuple[list[float], list[float]] = ([], [])
    with (
        Child(US.module, str(folder), "1", cores=cores[:1]) as one,
        Child(US.module, str(folder), "2", cores=cores[:2]) as two,
    ):
        for child in (one, two):
            child.turn("speed", batches=2)
        for _ in range(size.rounds):
            for child, rates in zip((one, two), found, strict=True):
                rates.append(_rows_per_second(child, size.our_batches, "wall_s"))
    progress(f"threads: {median(found[0]):,.0f} with one, {median(found[1]):,.0f} with two")
    bound = Bound("ratio", least=1.6)
    return [Measure(name="two threads, rows/s; one", ours=median(found[1]), peer=median(found[0]), target=bound)]


def quality(folder: Path, size: Size, cores: list[int]) -> list[Measure]:
    """Log loss on rows held out after one pass over the rows before them, each entrant at its best rate."""
    free: SimpleQueue[int] = SimpleQueue()
    for core in cores:
        free.put(core)

    def run(entrant: Entrant, rate: float) -> float:
        core = free.get()
        try:
            with entrant.start(folder, [core]) as child:
                loss = child.turn("quality", rate=rate, train=size.train, held_out=size.held_out)["log_loss"]
        finally:
            free.put(core)
        progress(f"log loss of {entrant.name} at rate {rate:g}: {loss:.5f}")
        return loss

    with ThreadPoolExecutor(len(cores)) as pool:
        jobs = {entrant: [pool.submit(run, entrant, rate) for rate in entrant.rates] for entrant in (*PEERS, US)}
        best = {entrant.name: min(job.result() for job in runs) for entrant, runs in jobs.items()}
    bound = Bound("ratio", most=1)
    return [
        Measure(name=f"log loss; {peer.name}", ours=best[OURS], peer=best[peer.name], target=bound) for peer in PEERS
    ]


def _rows_per_second(child: Child, batches: int, clock: str = "core_s") -> float:
    answer = child.turn("speed", batches=batches)
    return answer["rows"] / answer[clock]
