"""The MLP of a base model: batch norm and dropout, in plain torch with autograd.

S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015; N. Srivastava et al., "Dropout", JMLR 2014.
"""

from __future__ import annotations

import numpy as np
import torch

from learners.mlp import Buffers, Mlp, Tensors

_EPSILON = 1e-5


class RegularisedMlp(Mlp):
    """Each hidden layer is affine → batch norm → ReLU → dropout; either may be off.

    Learning normalises by the batch, predicting by running statistics ``<prefix>.<layer>.mean`` and ``.variance``,
    which lie among the parameters: where a parameter has its gradient, they have the batch's statistic x n. What is
    dropped depends on the seed, the step and the first row only.
    """

    def __init__(
        self,
        prefix: str,
        inputs: int,
        hidden: tuple[int, ...],
        value: Tensors,
        *,
        batch_norm: bool,
        dropout: float,
        seed: tuple[int, ...],
    ) -> None:
        super().__init__(prefix, inputs, hidden, value)
        self._batch_norm, self._dropout, self._seed = batch_norm, dropout, seed
        self._generator = np.random.default_rng(seed)
        learned = list(Mlp.shapes(prefix, inputs, hidden))
        self._learned = learned + (list(self.norm_shapes(prefix, hidden)) if batch_norm else [])
        self._graph: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor] | None = None
        self._statistics: dict[str, torch.Tensor] = {}
        if batch_norm:
            for layer in range(len(hidden)):
                value[f"{prefix}.{layer}.scale"].fill_(1)
                value[f"{prefix}.{layer}.variance"].fill_(1)

    @staticmethod
    def norm_shapes(prefix: str, hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of what batch norm learns: its output's scale and shift."""
        return {f"{prefix}.{layer}.{kind}": (w,) for layer, w in enumerate(hidden) for kind in ("scale", "shift")}

    @staticmethod
    def statistics_shapes(prefix: str, hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of its running statistics."""
        return {f"{prefix}.{layer}.{kind}": (w,) for layer, w in enumerate(hidden) for kind in ("mean", "variance")}

    def begin(self, step: int, first_row: int) -> None:
        """Choose anew what is dropped."""
        self._generator = np.random.default_rng((*self._seed, step, first_row))

    def forward(self, x: torch.Tensor, buffers: Buffers, *, learning: bool) -> torch.Tensor:
        """Inputs (n, widths[0]) → outputs (n,)."""
        if not learning:
            with torch.no_grad():
                return self._outputs(x, dict(self._value), learning=False)
        leaf = x.clone().requires_grad_()
        leaves = {name: self._value[name].detach().requires_grad_() for name in self._learned}
        with torch.enable_grad():
            outputs = self._outputs(leaf, leaves, learning=True)
        self._graph = (leaf, leaves, outputs)
        return outputs.detach()

    def backward(
        self,
        x: torch.Tensor,
        error: torch.Tensor,
        buffers: Buffers,
        gradient: Tensors,
        flow: torch.Tensor,
        *,
        add: bool,
    ) -> None:
        """As in `Mlp`, for the rows of the last ``forward``."""
        if self._graph is None:
            raise RuntimeError("backward needs a forward with learning=True before it: there is no graph to follow.")
        leaf, leaves, outputs = self._graph
        self._graph = None
        into, *found = torch.autograd.grad(outputs, [leaf, *leaves.values()], error)
        for name, of_parameter in zip(leaves, found, strict=True):
            gradient[name].copy_(of_parameter)
        for name, statistic in self._statistics.items():
            torch.mul(statistic, len(error), out=gradient[name])
        flow.add_(into) if add else flow.copy_(into)

    def _outputs(self, x: torch.Tensor, value: dict[str, torch.Tensor], *, learning: bool) -> torch.Tensor:
        for layer, (weight, bias) in enumerate(self._names[:-1]):
            x = torch.nn.functional.linear(x, value[weight], value[bias])
            if self._batch_norm:
                x = self._normalised(layer, x, value, learning=learning)
            x = x.relu()
            if learning and self._dropout:
                kept = self._generator.random(tuple(x.shape), dtype=np.float32) >= self._dropout
                x = x * torch.from_numpy(kept) / (1 - self._dropout)
        weight, bias = self._names[-1]
        return torch.nn.functional.linear(x, value[weight], value[bias])[:, 0]

    def _normalised(
        self, layer: int, x: torch.Tensor, value: dict[str, torch.Tensor], *, learning: bool
    ) -> torch.Tensor:
        name = f"{self._prefix}.{layer}"
        if learning:
            mean, variance = x.mean(0), x.var(0, unbiased=False)
            self._statistics |= {f"{name}.mean": mean.detach(), f"{name}.variance": variance.detach()}
        else:
            mean, variance = self._value[f"{name}.mean"], self._value[f"{name}.variance"]
        return (x - mean) / (variance + _EPSILON).sqrt() * value[f"{name}.scale"] + value[f"{name}.shift"]
