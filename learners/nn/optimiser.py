"""The dense parameters of a model in one flat vector, and Adam over it.

One vector makes an optimiser step one pass over memory, and a data-parallel exchange one message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from learners.nn.kernels import adam

_ALIGNED_FLOATS = 16  # each parameter starts at 64 bytes, on which the bits of a GEMM may depend

Shapes = Mapping[str, tuple[int, ...]]


class DenseParameters:
    """Named float32 tensors, ``value[name]``, as views of one flat vector, ``flat`` (P,).

    Parameters
    ----------
    learned
        Shapes of what the optimiser moves; they lie first, ``flat[: learned_size]``.
    statistics
        Shapes of what follows the batches by a running mean instead (batch norm).
    """

    def __init__(self, learned: Shapes, statistics: Shapes | None = None) -> None:
        self._learned, self._statistics = dict(learned), dict(statistics or {})
        shapes = self._learned | self._statistics
        sizes = [_padded(shape) for shape in shapes.values()]
        starts = np.concatenate(([0], np.cumsum(sizes))).tolist()
        self.learned_size: int = starts[len(self._learned)]
        self.flat = torch.zeros(sum(sizes))
        self.value = _views(self.flat, shapes, starts)

    def like(self) -> Self:
        """Zeros of the same names and shapes, as a place for gradients."""
        return type(self)(self._learned, self._statistics)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Copies of the values by name."""
        return {name: value.numpy().copy() for name, value in self.value.items()}

    def check(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Raise ValueError unless ``arrays`` has exactly these names and shapes."""
        check_shapes({name: tuple(value.shape) for name, value in self.value.items()}, arrays)

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Overwrite all values; ValueError, and nothing written, when names or shapes differ."""
        self.check(arrays)
        for name, array in arrays.items():
            self.value[name].numpy()[...] = array


def check_shapes(ours: Shapes, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError unless ``arrays`` has exactly the names and shapes of ``ours``."""
    theirs = {name: tuple(array.shape) for name, array in arrays.items()}
    if dict(ours) != theirs:
        raise ValueError(
            f"dense weights {theirs} do not fit a model with {dict(ours)}: they came from another config or feature "
            "spec. Build the model with the config that wrote them."
        )


def padded_size(learned: Shapes) -> int:
    """How many numbers the optimiser moves, with what lies between the parameters."""
    return sum(map(_padded, learned.values()))


def _padded(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // _ALIGNED_FLOATS) * _ALIGNED_FLOATS


def _views(flat: torch.Tensor, shapes: Shapes, starts: Sequence[int]) -> dict[str, torch.Tensor]:
    return {
        name: flat[start : start + int(np.prod(shape))].view(shape)
        for (name, shape), start in zip(shapes.items(), starts, strict=False)
    }


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1, ε inside as in torch) over one flat vector, for steps of any number of rows.

    It is given sums over the rows of a step. Adam divides the size of a gradient out, so that many small steps would
    move the values further than a few large ones over the same rows. So the rate falls with the root of the mean rows
    of a step, as in S. Malladi, K. Lyu, A. Panigrahi, S. Arora, "On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms", NeurIPS 2022, definition 5.1: then rows teach and jitter the same, however they are cut into steps.
    Sums and the mean number, instead of each step's own, because a step of exposures and one of their clicks must
    cancel at the right probability, though they have different numbers of rows.

    first, second : (P,) float32, the moments. rows : that of the rows of a step. steps : how often ``step`` was called.
    """

    decays, epsilon = (0.9, 0.999), 1e-8

    def __init__(self, size: int, full_rows: int) -> None:
        self.first = np.zeros(size, np.float32)
        self.second = np.zeros(size, np.float32)
        self.rows = 0.0
        self.steps = 0
        self._full_rows = full_rows

    def step(
        self, values: NDArray[np.float32], sums: NDArray[np.float32], *, rows: float, rate: float, grows: bool = False
    ) -> None:
        """Move ``values`` (P,) against ``sums`` (P,) of the gradients of ``rows`` rows, in place.

        ``rate`` is that of steps of ``full_rows`` rows, and of more, unless it ``grows`` with the root of these too.
        """
        self.steps += 1
        keep_first, keep_second = self.decays
        self.rows = keep_second * self.rows + (1 - keep_second) * rows
        mean_rows = self.rows / (1 - keep_second**self.steps)
        share = mean_rows / self._full_rows
        rate *= math.sqrt(share if grows else min(1.0, share))
        adam(
            values,
            sums,
            self.first,
            self.second,
            np.float32(1 / self._full_rows),
            (np.float32(keep_first), np.float32(keep_second)),
            np.float32(rate / (1 - keep_first**self.steps)),
            np.float32(np.sqrt(1 - keep_second**self.steps)),
            np.float32(self.epsilon),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies under ``adam.``."""
        return {
            "adam.first": self.first.copy(),
            "adam.second": self.second.copy(),
            "adam.rows": np.array([self.rows], np.float64),
            "adam.steps": np.array([self.steps], np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a checked state; one without ``adam.rows`` is of a version that took every step for a full one."""
        first, second, steps = state["adam.first"], state["adam.second"], int(state["adam.steps"][0])
        self.first[...], self.second[...], self.steps = first, second, steps
        as_if_full = self._full_rows * (1 - self.decays[1] ** steps)
        self.rows = float(state["adam.rows"][0]) if "adam.rows" in state else as_if_full
