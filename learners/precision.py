"""Whether the GEMMs of learning run in bf16: measured once, checked again now and then, and kept in the state.

bf16 multiplies up to twice as fast as fp32 (sixteen times with AMX), or at half the speed where a CPU only pretends.
Weights, accumulators and optimiser stay in fp32 whatever is chosen, and so do predictions.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch

from learners.deepfm_config import PrecisionSetting

CHECKED_EVERY = 1000
"""Steps between two comparisons of the loss in bf16 and in fp32."""

_NARROW = 256  # widths below which converting costs more than a faster GEMM saves
_WORTH = 1.25  # how much faster bf16 must be
_ROWS = 512
_HARMLESS = 1e-3  # of the loss: what bf16 may change it by
_UNDECIDED, _FP32, _BF16 = -1, 0, 1


class Precision:
    """The choice for one model; ``code`` goes into its state and comes from it: −1 undecided, 0 fp32, 1 bf16.

    A measurement is no function of the data. So the choice is part of the state, and whoever wants to repeat a run
    from its very first batch on another machine must set ``fp32`` or ``bf16``.
    """

    def __init__(self, setting: PrecisionSetting, widest: tuple[int, int]) -> None:
        self._setting = setting
        self._widest = widest
        self.code = {"fp32": _FP32, "bf16": _BF16, "auto": _UNDECIDED}[setting]
        if setting == "auto" and min(widest) < _NARROW:
            self.code = _FP32

    @property
    def bf16(self) -> bool:
        """Whether to learn with bf16 GEMMs. With ``auto``, the first call measures."""
        if self.code == _UNDECIDED:
            self.code = _BF16 if bf16_speedup(*self._widest) >= _WORTH else _FP32
        return self.code == _BF16

    def due(self, step: int) -> bool:
        """Whether the losses must be compared before this step (the first is 0)."""
        return self._setting == "auto" and self.bf16 and step % CHECKED_EVERY == 0

    def compare(self, fp32_loss: float, bf16_loss: float) -> None:
        """Fall back to fp32 for good when bf16 gives another loss."""
        if not math.isclose(fp32_loss, bf16_loss, rel_tol=_HARMLESS):
            self.code = _FP32


@functools.cache
def bf16_speedup(inputs: int, outputs: int) -> float:
    """How many times as fast as in fp32 a layer of these widths runs in bf16, conversions included."""
    x, weight = torch.full((_ROWS, inputs), 0.5), torch.full((outputs, inputs), 0.5)
    half = weight.bfloat16()
    return _best_s(lambda: x @ weight.T) / _best_s(lambda: (x.bfloat16() @ half.T).float())


def _best_s(work: Callable[[], torch.Tensor], rounds: int = 7) -> float:
    """The shortest of some runs, in seconds; the first is not counted."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
