"""The dense part of DeepFM in plain torch with autograd: with batch norm and dropout, and on a GPU.

For the large batches of base training. The table, the parameters and both optimisers stay in host memory, where the
stream goes on with them. A step sends the batch's distinct table rows, the inverse, and the parameters (some 150 kB)
to the device, and takes the gradients back. On a GPU that pays from some thousand rows a batch; at the stream's 128
rows the CPU is faster. Shapes: B rows, E embedded columns, D = dim, K dense inputs, H heads, U table rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import linear, logsigmoid

from learners.deepfm.config import DeepFMConfig
from learners.deepfm.dense_shapes import dense_shapes, norm_shapes
from learners.examples.terms import Terms
from learners.nn.chunk import Floats, Inputs
from learners.nn.heads import Heads
from learners.nn.mlp import Mlp
from learners.nn.optimiser import DenseParameters

_CPU = torch.device("cpu")
_BATCH_NORM_EPSILON = 1e-5  # as in torch

Tensors = Mapping[str, torch.Tensor]


def chosen_device(setting: str, rank: int = 0) -> torch.device:
    """The device to learn on; ``auto`` takes a GPU where torch sees one. Workers of one machine take turns.

    Raises
    ------
    ValueError
        Another setting, or ``cuda`` where torch sees no GPU.
    """
    if setting not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {setting} must be auto, cpu or cuda: torch code for no other was written.")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cuda" and not seen:
        raise ValueError("--device cuda needs a GPU and torch sees none: install a torch built for it, or use cpu.")
    return torch.device("cuda", rank % seen) if seen and setting != "cpu" else _CPU


@dataclass(frozen=True, slots=True)
class Learning:
    """What learning a batch needs beside the parameters: who draws what is dropped, and where batch norm notes.

    statistics : mean and variance of each normalised layer over the batch, by the names of the running ones.
    """

    generator: np.random.Generator
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tower:
    """The MLP of one head: each hidden layer is affine → batch norm → ReLU → dropout; either may be off.

    S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015; N. Srivastava et al., "Dropout", JMLR 2014. Learning
    normalises by the batch, predicting by the running statistics ``<prefix>.<layer>.mean`` and ``.variance``.
    """

    prefix: str
    hidden: tuple[int, ...]
    batch_norm: bool = False
    dropout: float = 0.0

    def start(self, value: Tensors, inputs: int, generator: np.random.Generator) -> None:
        """The start values of `Mlp`; batch norm changes nothing yet."""
        Mlp(self.prefix, inputs, self.hidden, value).start(generator)
        for name in norm_shapes(self.prefix, self.hidden if self.batch_norm else (), "scale", "variance"):
            value[name].fill_(1)

    def outputs(self, x: torch.Tensor, value: Tensors, learning: Learning | None = None) -> torch.Tensor:
        """Inputs (B, W) → outputs (B,); as a prediction unless ``learning``."""
        depth = len(self.hidden)
        for layer in range(depth):
            name = f"{self.prefix}.{layer}"
            x = linear(x, value[f"{name}.weight"], value[f"{name}.bias"])
            if self.batch_norm:
                x = _normalised(name, x, value, learning)
            x = x.relu()
            if learning is not None and self.dropout:
                kept = learning.generator.random(tuple(x.shape), dtype=np.float32) >= self.dropout
                x = x * torch.from_numpy(kept).to(x.device) / (1 - self.dropout)
        return linear(x, value[f"{self.prefix}.{depth}.weight"], value[f"{self.prefix}.{depth}.bias"])[:, 0]


def _normalised(name: str, x: torch.Tensor, value: Tensors, learning: Learning | None) -> torch.Tensor:
    if learning is None:
        mean, variance = value[f"{name}.mean"], value[f"{name}.variance"]
    else:
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        learning.statistics.update({f"{name}.mean": mean.detach(), f"{name}.variance": variance.detach()})
    return (x - mean) / (variance + _BATCH_NORM_EPSILON).sqrt() * value[f"{name}.scale"] + value[f"{name}.shift"]


class AutogradNetwork:
    """What `learners.deepfm.network.Network` is, on ``device`` and with the config's batch norm and dropout; in fp32.

    Its sums are added in another order: the same batches give nearly, not exactly, the same weights. What is dropped
    depends on the seed, the step and the first row only, not on the device.
    """

    def __init__(self, config: DeepFMConfig, *, columns: int, dense: int, device: torch.device = _CPU) -> None:
        self.device = device
        self.heads = Heads(config.heads)
        self._seed = config.seed
        self._towers = [
            Tower(f"mlp.{name}", hidden, config.batch_norm, config.dropout)
            for name, hidden in zip(self.heads.names, config.tower_widths, strict=True)
        ]
        width = columns * config.dim + dense
        learned, statistics = dense_shapes(config, columns=columns, dense=dense)
        self._learned = tuple(learned)
        # Batch norm takes the mean away, and a bias before it with it: its gradient is the rounding of 0, of which Adam
        # would make whole steps, others on every device.
        self._without_gradient = {
            name
            for tower in self._towers
            if config.batch_norm
            for name in norm_shapes(tower.prefix, tower.hidden, "bias")
        }
        self.parameters = DenseParameters(learned, statistics)
        for head, tower in enumerate(self._towers):
            tower.start(self.parameters.value, width, np.random.default_rng((config.seed, 1, head)))

    def logits(self, inputs: Inputs) -> Floats:
        """Each head's own logit, (H, B)."""
        with torch.no_grad():
            own = self._own_logits(inputs, self._sent(inputs.values), self._sent_parameters(), None)
            logits: Floats = np.ascontiguousarray(own.T.cpu().numpy())
        return logits

    def gradients(self, inputs: Inputs, terms: Terms, *, step: int = 0, first_row: int = 0) -> tuple[Floats, Floats]:
        """Sums over the rows of the loss' gradients: of ``values``, (U, D + 1), and of the parameters, flat (P,).

        ``terms`` are (B, H). Where a running statistic would have its gradient, there is the batch's statistic x B.
        """
        sums = self.parameters.like()
        if not len(inputs.inverse):
            return np.zeros_like(inputs.values), sums.flat.numpy()
        values, parameters = self._sent(inputs.values).requires_grad_(), self._sent_parameters()
        learned = [parameters[name].requires_grad_() for name in self._learned]
        learning = [
            Learning(np.random.default_rng((self._seed, 2, head, step, first_row))) for head in range(len(self._towers))
        ]
        loss = self._loss(self._own_logits(inputs, values, parameters, learning), terms)
        of_values, *of_parameters = torch.autograd.grad(loss, [values, *learned])
        for name, gradient in zip(self._learned, of_parameters, strict=True):
            if name not in self._without_gradient:
                sums.value[name].copy_(gradient)
        for of_tower in learning:
            for name, statistic in of_tower.statistics.items():
                sums.value[name].copy_(statistic * len(inputs.inverse))
        return of_values.cpu().numpy(), sums.flat.numpy()

    def _sent(self, array: Floats) -> torch.Tensor:
        return torch.tensor(array, device=self.device)  # a copy, also on the CPU

    def _sent_parameters(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone().to(self.device) for name, value in self.parameters.value.items()}

    def _loss(self, own: torch.Tensor, terms: Terms) -> torch.Tensor:
        """Σ exposure·softplus(z) − event·z in a form that loses no digits; logits and terms (B, H)."""
        exposure, event = self._sent(terms.exposure), self._sent(terms.event)
        return -((exposure - event) * logsigmoid(-own) + event * logsigmoid(own)).sum()

    def _own_logits(
        self, inputs: Inputs, values: torch.Tensor, parameters: Tensors, learning: list[Learning] | None
    ) -> torch.Tensor:
        """(B, H)."""
        inverse = torch.from_numpy(inputs.inverse.astype(np.int64)).to(self.device)
        with_missing = torch.cat((values, values.new_zeros((1, values.shape[1]))))  # index −1 is its last row
        looked = with_missing[inverse]  # (B, E, D + 1)
        dense = self._sent(inputs.dense)
        vectors = looked[:, :, :-1]
        pairs = 0.5 * (vectors.sum(1).square().sum(1) - vectors.square().sum((1, 2)))
        x = torch.cat((vectors.flatten(1), dense), dim=1)
        of_towers: Sequence[Learning | None] = learning or [None] * len(self._towers)
        towers = [tower.outputs(x, parameters, one) for tower, one in zip(self._towers, of_towers, strict=True)]
        towers[0] = towers[0] + looked[:, :, -1].sum(1) + pairs + dense @ parameters["linear.weight"]
        return torch.stack(towers, dim=1)
