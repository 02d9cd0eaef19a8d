"""The dense parameters of a DeepFM by name, known from its config without making any."""

from __future__ import annotations

from learners.deepfm.config import DeepFMConfig
from learners.nn.mlp import Mlp

Shapes = dict[str, tuple[int, ...]]


def dense_shapes(config: DeepFMConfig, *, columns: int, dense: int) -> tuple[Shapes, Shapes]:
    """Of what the optimiser moves, and of batch norm's running statistics; ``columns`` is E, ``dense`` K.

    The linear weights, and of each head its `Mlp`'s, then batch norm's scale and shift.
    """
    learned: Shapes = {"linear.weight": (dense,)}
    statistics: Shapes = {}
    for head, hidden in zip(config.heads, config.tower_widths, strict=True):
        prefix, normalised = f"mlp.{head.name}", hidden if config.batch_norm else ()
        learned |= Mlp.shapes(prefix, columns * config.dim + dense, hidden)
        learned |= norm_shapes(prefix, normalised, "scale", "shift")
        statistics |= norm_shapes(prefix, normalised, "mean", "variance")
    return learned, statistics


def norm_shapes(prefix: str, hidden: tuple[int, ...], *kinds: str) -> Shapes:
    """Of batch norm's vectors over normalised layers."""
    return {f"{prefix}.{layer}.{kind}": (width,) for layer, width in enumerate(hidden) for kind in kinds}
