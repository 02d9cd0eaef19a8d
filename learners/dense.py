"""The dense parameters of a model in one flat vector, and Adam over it.

One vector makes an optimiser step one pass over memory, and a data-parallel exchange one message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from learners.fm_kernels import adam

_ALIGNMENT = 16  # floats: each parameter starts at 64 bytes, on which the bits of a GEMM may depend

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
        sizes = [-(-int(np.prod(shape)) // _ALIGNMENT) * _ALIGNMENT for shape in shapes.values()]
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
        ours = {name: tuple(value.shape) for name, value in self.value.items()}
        theirs = {name: tuple(array.shape) for name, array in arrays.items()}
        if ours != theirs:
            raise ValueError(
                f"dense weights {theirs} do not fit a model with {ours}: they came from another config or feature "
                "spec. Build the model with the config that wrote them."
            )

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Overwrite all values; ValueError, and nothing written, when names or shapes differ."""
        self.check(arrays)
        for name, array in arrays.items():
            self.value[name].numpy()[...] = array


def _views(flat: torch.Tensor, shapes: Shapes, starts: Sequence[int]) -> dict[str, torch.Tensor]:
    return {
        name: flat[start : start + int(np.prod(shape))].view(shape)
        for (name, shape), start in zip(shapes.items(), starts, strict=False)
    }


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1, ε inside as in torch) over one flat vector.

    first, second : (P,) float32, the moments. steps : how often ``step`` was called.
    """

    decays, epsilon = (0.9, 0.999), 1e-8

    def __init__(self, size: int) -> None:
        self.first = np.zeros(size, np.float32)
        self.second = np.zeros(size, np.float32)
        self.steps = 0

    def step(
        self, values: NDArray[np.float32], gradients: NDArray[np.float32], *, rate: float, scale: float = 1.0
    ) -> None:
        """Move ``values`` (P,) against ``scale`` x ``gradients`` (P,), in place."""
        self.steps += 1
        keep_first, keep_second = self.decays
        adam(
            values,
            gradients,
            self.first,
            self.second,
            np.float32(scale),
            (np.float32(keep_first), np.float32(keep_second)),
            np.float32(rate / (1 - keep_first**self.steps)),
            np.float32(np.sqrt(1 - keep_second**self.steps)),
            np.float32(self.epsilon),
        )
