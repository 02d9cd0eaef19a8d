"""Networks of the field over gathered embeddings, one class each; autograd does the backward pass.

A network is made of a `NetworkConfig` and a `ModelShape`, and gives one logit a row.
Shapes: B rows, E embedded columns, D = dim, K dense inputs, T history columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import nn

from learners.features.shape import ModelShape
from learners.table.table import TableConfig

Kind = Literal["fm", "wide_deep", "dcn_v2", "din"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Sizes and rates; a setting that a kind of network has no use for is ignored by it."""

    kind: Kind
    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    cross_layers: int = 2  # dcn_v2: each raises the degree of the crosses by one
    cross_rank: int = 0  # dcn_v2: of the cross matrices; 0: full
    attention: int = 16  # din: width of the network that weighs a recent ad
    vector_rate: float = 0.005  # row-wise Adagrad
    weight_rate: float = 0.05
    vector_beta: float = 1e-4  # where the accumulators start
    weight_beta: float = 1.0
    dense_rate: float = 3e-4  # Adam
    full_batch_rows: int = 128  # of weight 1; the dense rate is that of such batches, and falls with the root of fewer
    table: TableConfig = field(default_factory=TableConfig)  # its seed is the network's too

    def __post_init__(self) -> None:
        rates = ("vector_rate", "weight_rate", "vector_beta", "weight_beta", "dense_rate")
        for name in ("dim", "attention", "full_batch_rows", *rates):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be positive and finite: the network could not learn. Raise it.")
        if any(width < 1 for width in self.hidden) or self.cross_layers < 1 or self.cross_rank < 0:
            raise ValueError(
                f"hidden={self.hidden} and cross_layers={self.cross_layers} must be positive and "
                f"cross_rank={self.cross_rank} not negative: a layer of 0 passes nothing on."
            )


class Gathered(NamedTuple):
    """What a batch's ids stand for; a missing id is all zeros.

    vectors : (B, E, D) · weights : (B, E) first-order weights · dense : (B, K) ·
    target : (B, D) the vector of the ad · history : (B, T, D) those of the user's recent ads · present : (B, T) bool.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    dense: torch.Tensor
    target: torch.Tensor
    history: torch.Tensor
    present: torch.Tensor

    @property
    def flat(self) -> torch.Tensor:
        """All inputs of a row side by side, (B, E·D + K)."""
        return torch.cat((self.vectors.flatten(1), self.dense), dim=1)


class CtrNetwork(nn.Module):
    """Gathered inputs to logits."""

    reads_history: ClassVar[bool] = False

    def forward(self, inputs: Gathered) -> torch.Tensor:
        """Logits, (B,)."""
        raise NotImplementedError


class Linear(CtrNetwork):
    """The first order: a weight for each id and each dense input. Part of the others."""

    def __init__(self, config: NetworkConfig, shape: ModelShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.dense))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, inputs: Gathered) -> torch.Tensor:
        """Logits, (B,)."""
        return inputs.weights.sum(1) + inputs.dense @ self.weight + self.bias


class FactorisationMachine(CtrNetwork):
    """First order and inner products of all pairs of ids: Rendle, "Factorization Machines", ICDM 2010, equation 1."""

    def __init__(self, config: NetworkConfig, shape: ModelShape) -> None:
        super().__init__()
        self.linear = Linear(config, shape)

    def forward(self, inputs: Gathered) -> torch.Tensor:
        """Logits, (B,)."""
        pairs = inputs.vectors.sum(1).square() - inputs.vectors.square().sum(1)  # lemma 3.1
        first: torch.Tensor = self.linear(inputs)
        return first + 0.5 * pairs.sum(1)


class WideDeep(CtrNetwork):
    """A linear model beside an MLP: Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016.

    The wide part's crosses are crosses of the feature spec that are learned as ids.
    """

    def __init__(self, config: NetworkConfig, shape: ModelShape) -> None:
        super().__init__()
        self.wide = Linear(config, shape)
        self.deep = mlp((width_of(config, shape), *config.hidden, 1))

    def forward(self, inputs: Gathered) -> torch.Tensor:
        """Logits, (B,)."""
        wide: torch.Tensor = self.wide(inputs)
        deep: torch.Tensor = self.deep(inputs.flat)
        return wide + deep[:, 0]


class DcnV2(CtrNetwork):
    """Explicit crosses beside an MLP: Wang et al., "DCN V2", WWW 2021, equations 1 and 2, the parallel structure."""

    def __init__(self, config: NetworkConfig, shape: ModelShape) -> None:
        super().__init__()
        width, rank = width_of(config, shape), config.cross_rank
        self.linear = Linear(config, shape)
        self.crosses = nn.ModuleList(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            if rank
            else nn.Linear(width, width)
            for _ in range(config.cross_layers)
        )
        self.deep = mlp((width, *config.hidden)) if config.hidden else nn.Identity()
        self.out = nn.Linear(width + (config.hidden[-1] if config.hidden else width), 1)

    def forward(self, inputs: Gathered) -> torch.Tensor:
        """Logits, (B,)."""
        x = crossed = inputs.flat
        for cross in self.crosses:
            crossed = x * cross(crossed) + crossed
        deep = torch.relu(self.deep(x))
        logits: torch.Tensor = self.linear(inputs) + self.out(torch.cat((crossed, deep), dim=1))[:, 0]
        return logits


class Din(CtrNetwork):
    """An MLP that reads the user's recent ads as far as they concern the ad: Zhou et al., "DIN", KDD 2018, equation 3.

    The weights of the recent ads are not normalised, so that many of one kind count for more. Beside the paper: the
    first order, plain ReLU instead of Dice, and the product of the two ads instead of their outer product.
    """

    reads_history = True

    def __init__(self, config: NetworkConfig, shape: ModelShape) -> None:
        super().__init__()
        self.linear = Linear(config, shape)
        self.weigh = mlp((4 * config.dim, config.attention, 1))
        self.deep = mlp((width_of(config, shape) + config.dim, *config.hidden, 1))

    def forward(self, inputs: Gathered) -> torch.Tensor:
        """Logits, (B,)."""
        target = inputs.target[:, None, :].expand_as(inputs.history)
        pairs = torch.cat((inputs.history, target, inputs.history - target, inputs.history * target), dim=2)
        weights = self.weigh(pairs)[:, :, 0] * inputs.present  # (B, T)
        interest = (weights[:, :, None] * inputs.history).sum(1)  # (B, D)
        deep: torch.Tensor = self.deep(torch.cat((inputs.flat, interest), dim=1))
        logits: torch.Tensor = self.linear(inputs) + deep[:, 0]
        return logits


NETWORKS: dict[Kind, type[FactorisationMachine | WideDeep | DcnV2 | Din]] = {
    "fm": FactorisationMachine,
    "wide_deep": WideDeep,
    "dcn_v2": DcnV2,
    "din": Din,
}


def width_of(config: NetworkConfig, shape: ModelShape) -> int:
    """The width of `Gathered.flat`."""
    return len(shape.embedded) * config.dim + shape.dense


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
