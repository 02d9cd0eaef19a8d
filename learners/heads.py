"""Named outputs of one model, and the log loss of heads that hang on each other.

X. Ma, L. Zhao, G. Huang, Z. Wang, Z. Hu, X. Zhu, K. Gai, "Entire Space Multi-Task Model: An Effective Approach for
Estimating Post-Click Conversion Rate", SIGIR 2018: a head with ``given`` predicts a conditional probability, and what
is learned is the product along the chain, over all impressions, so that nobody needs a training set of clicks alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Head:
    """One output: P(name | given), or P(name) without ``given``. ``hidden`` are its MLP's widths, None the model's."""

    name: str
    given: str | None = None
    hidden: tuple[int, ...] | None = None


class Heads:
    """The H heads of a model in their order; the first stands alone.

    Raises
    ------
    ValueError
        No head, a name twice, or a ``given`` that is no earlier head.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        if not heads or heads[0].given is not None:
            raise ValueError(f"heads={heads} must begin with one that is given nothing: it is what is ranked by.")
        self.names = tuple(head.name for head in heads)
        # chains[h, a]: the probability of h is a product in which that of a occurs
        self._chains = np.eye(len(heads), dtype=np.bool_)
        for place, head in enumerate(heads):
            earlier = self.names[:place]
            if head.name in earlier or not head.name:
                raise ValueError(
                    f"head {head.name!r} needs a name of its own: heads {self.names} are told apart by it."
                )
            if head.given is not None:
                if head.given not in earlier:
                    raise ValueError(
                        f"head {head.name} is given {head.given}, which is none of the heads before it {earlier}: "
                        "its probability would have no meaning. List that head first."
                    )
                self._chains[place] |= self._chains[earlier.index(head.given)]

    def __len__(self) -> int:
        return len(self.names)

    def errors(self, logits: Floats, labels: Floats, weight: Floats, out: Floats) -> None:
        """∂loss/∂logit of every head, (H, n), into ``out``; labels and weight (n, H), logits (H, n)."""
        _errors(logits, labels, weight, self._chains, out)

    def loss(self, logits: Floats, labels: Floats, weight: Floats) -> float:
        """The summed log loss of all heads; shapes as in ``errors``."""
        return float(_loss(logits, labels, weight, self._chains))

    def joint(self, logits: Floats) -> NDArray[np.float64]:
        """Logits (B, H) as ``predict_heads`` gives them → probabilities (B, H), each multiplied along its chain."""
        log_p = -np.logaddexp(0, -logits.astype(np.float64))
        joint: NDArray[np.float64] = np.exp(log_p @ self._chains.T.astype(np.float64))
        return joint


@kernel
def _log_joint(logits: Floats, chain: NDArray[np.bool_], row: int) -> float:
    """The sum of log sigmoid(logit) along a chain, without overflow."""
    total = 0.0
    for head in range(len(chain)):
        if chain[head]:
            z = float(logits[head, row])
            total -= math.log1p(math.exp(-abs(z))) - min(z, 0.0)
    return total


@kernel
def _errors(logits: Floats, labels: Floats, weight: Floats, chains: NDArray[np.bool_], out: Floats) -> None:
    """For q, the product along a chain, and its factor p: ∂log q/∂z = 1 − p, ∂log(1 − q)/∂z = −q(1 − p)/(1 − q)."""
    out[:] = 0
    heads = len(chains)
    for row in range(logits.shape[1]):
        for head in range(heads):
            log_q = _log_joint(logits, chains[head], row)
            not_q = -math.expm1(log_q)
            for member in range(heads):
                if chains[head, member]:
                    not_p = 1 / (1 + math.exp(float(logits[member, row])))
                    if labels[row, head] > 0:
                        gradient = -not_p
                    else:
                        gradient = math.exp(log_q) * (not_p / not_q if not_q > 0 else 1.0)
                    out[member, row] += np.float32(weight[row, head] * gradient)


@kernel
def _loss(logits: Floats, labels: Floats, weight: Floats, chains: NDArray[np.bool_]) -> float:
    total = 0.0
    for row in range(logits.shape[1]):
        for head in range(len(chains)):
            log_q = _log_joint(logits, chains[head], row)
            log_p = log_q if labels[row, head] > 0 else math.log(max(-math.expm1(log_q), 1e-300))
            total -= float(weight[row, head]) * log_p
    return total
