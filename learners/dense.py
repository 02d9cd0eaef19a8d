"""The dense parameters of a model in one flat vector, and Adam over it.

One vector makes an optimiser step five calls instead of five per parameter, which is what counts at small batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 16  # floats: each parameter starts at 64 bytes, on which the bits of a GEMM may depend

Shapes = Mapping[str, tuple[int, ...]]


class DenseParameters:
    """Named float32 tensors, ``value[name]`` and ``gradient[name]``, as views of two flat vectors."""

    def __init__(self, shapes: Shapes) -> None:
        sizes = [-(-int(np.prod(shape)) // _ALIGNMENT) * _ALIGNMENT for shape in shapes.values()]
        self.values = torch.zeros(sum(sizes))
        self.gradients = torch.zeros(sum(sizes))
        starts = np.concatenate(([0], np.cumsum(sizes))).tolist()
        self.value = _views(self.values, shapes, starts)
        self.gradient = _views(self.gradients, shapes, starts)

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

    beta_first, beta_second, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, size: int) -> None:
        self.first = torch.zeros(size)
        self.second = torch.zeros(size)
        self.steps = 0

    def step(self, values: torch.Tensor, gradients: torch.Tensor, rate: float) -> None:
        """Move ``values`` (P,) against ``gradients`` (P,), in place."""
        self.steps += 1
        self.first.lerp_(gradients, 1 - self.beta_first)
        self.second.mul_(self.beta_second).addcmul_(gradients, gradients, value=1 - self.beta_second)
        second_correction = float(np.sqrt(1 - self.beta_second**self.steps))
        scale = (self.second.sqrt() / second_correction).add_(self.epsilon)
        values.addcdiv_(self.first, scale, value=-rate / (1 - self.beta_first**self.steps))
