"""The output biases of the heads: where a model starts, and how its level is moved."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from learners.deepfm.config import DeepFMConfig


class OutputBiases:
    """The last bias of each head's MLP, each a view of the model's parameters ``value``."""

    def __init__(self, config: DeepFMConfig, value: Mapping[str, torch.Tensor]) -> None:
        self._heads = config.heads
        self._biases = [
            value[f"mlp.{head.name}.{len(widths)}.bias"]
            for head, widths in zip(config.heads, config.tower_widths, strict=True)
        ]

    def start_at_rates(self) -> None:
        """At the heads' rates, so that the ids need not share out the mean among them: a new id has no share."""
        for head, bias in zip(self._heads, self._biases, strict=True):
            if head.start_p is not None:
                bias.fill_(math.log(head.start_p / (1 - head.start_p)))

    def shift_first(self, log_odds: float) -> None:
        """Move every logit of the first head."""
        self._biases[0].add_(log_odds)
