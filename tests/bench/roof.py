"""The roof: what the best GEMM of this core reaches, in GFLOP per core second. ``python -m tests.bench.roof``."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from tests.bench.rows import BATCH, DIM, FIELDS, HIDDEN
from tests.bench.turns import serve

_REPEATS = 5
_SHAPES = ((1024, 1024, 1024), *((BATCH, a, b) for a, b in zip((FIELDS * DIM, *HIDDEN), HIDDEN, strict=False)))


def gemm_gflops() -> dict[str, float]:
    """The best of numpy and torch over a square product and the MLP's own, for fp32 and for bf16."""
    fp32, bf16 = [], []
    for rows, inner, columns in _SHAPES:
        left, right = torch.rand(rows, inner), torch.rand(inner, columns)
        gflop = 2 * rows * inner * columns / 1e9
        out = torch.empty(rows, columns)
        a, b, c = left.numpy(), right.numpy(), out.numpy()
        fp32 += [
            gflop / _shortest_s(lambda a=a, b=b, c=c: np.matmul(a, b, out=c)),  # type: ignore[misc]
            gflop / _shortest_s(lambda x=left, y=right, z=out: torch.mm(x, y, out=z)),  # type: ignore[misc]
        ]
        half_left, half_right, half_out = left.bfloat16(), right.bfloat16(), out.bfloat16()
        bf16.append(
            gflop / _shortest_s(lambda x=half_left, y=half_right, z=half_out: torch.mm(x, y, out=z))  # type: ignore[misc]
        )
    return {"fp32": max(fp32), "bf16": max(bf16)}


def _shortest_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve({"gemm": gemm_gflops})
