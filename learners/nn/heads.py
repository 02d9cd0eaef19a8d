"""Named outputs of one model, each an independent logistic regression with its own two terms of the log loss.

A head with ``given`` predicts a conditional probability and learns from the rows where the condition happened: of
P(conversion | click) a click pays softplus(z) when it is clicked, a conversion −z when it comes. Why not the product
along the chain over all impressions (X. Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating
Post-Click Conversion Rate", SIGIR 2018), whose loss is log(1 − p·q) for a display that does not convert: its gradient
depends on both heads at once and on what a display comes to in the end, so that the term of every display would have to
wait for a conversion's delay of days, or be paid as a fake negative. Here only clicks, a hundredth of the rows, have
one to wait for. What is lost is ESMM's remedy against the selection of clicks; the embeddings are still shared.
Shapes: B rows, H heads, n rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.examples.terms import Terms
from learners.kernel import kernel

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Head:
    """One output: P(name | given), or P(name) without ``given``.

    hidden : widths of its MLP, None: the model's · start_p : what it predicts before it has learned anything, the rate
    of the event where that is known; None: a half, and base training puts in the rate of its train rows.
    """

    name: str
    given: str | None = None
    hidden: tuple[int, ...] | None = None
    start_p: float | None = None


class Heads:
    """The H heads of a model in their order; the first stands alone.

    Raises
    ------
    ValueError
        No head, a name twice, or a ``given`` that is no earlier head.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        if not heads:
            raise ValueError(
                "heads=[] must hold one or more: there is nothing to rank by. Leave heads out for a click."
            )
        if heads[0].given is not None:
            raise ValueError(
                f"head {heads[0].name} is given {heads[0].given}: heads must begin with one that is given nothing, "
                "which is what is ranked by. List that one first."
            )
        self.names = tuple(head.name for head in heads)
        # chains[h, a]: the probability of h is a product in which that of a occurs
        self._chains = np.eye(len(heads), dtype=np.bool_)
        self._given: dict[int, int] = {}
        for index, head in enumerate(heads):
            earlier = self.names[:index]
            if head.name in earlier or not head.name:
                raise ValueError(
                    f"head {head.name!r} needs a name of its own: heads {self.names} are told apart by it."
                )
            if head.start_p is not None and not 0 < head.start_p < 1:
                raise ValueError(
                    f"start_p={head.start_p} of head {head.name} must lie between 0 and 1: its log-odds would be "
                    "infinite. Take the expected rate, or leave it out."
                )
            if head.given is not None:
                if head.given not in earlier:
                    raise ValueError(
                        f"head {head.name} is given {head.given}, which is none of the heads before it {earlier}: "
                        "its probability would have no meaning. List that head first."
                    )
                self._given[index] = earlier.index(head.given)
                self._chains[index] |= self._chains[self._given[index]]

    def __len__(self) -> int:
        return len(self.names)

    def terms_of_labels(self, labels: Floats, weight: Floats) -> Terms:
        """What rows of known outcome teach: labels (B, H) of what happened, weight (B,) or (B, H) → terms (B, H).

        A head with ``given`` learns nothing from rows where that did not happen.
        """
        weight = np.array(np.broadcast_to(weight.reshape(len(labels), -1), labels.shape))
        for head, condition in self._given.items():
            weight[:, head] *= labels[:, condition]
        return Terms.of_labels(labels, weight)

    def joint(self, logits: Floats) -> NDArray[np.float64]:
        """Logits (B, H) as ``predict_heads`` gives them → probabilities (B, H), each multiplied along its chain."""
        log_p = -np.logaddexp(0, -logits.astype(np.float64))
        joint: NDArray[np.float64] = np.exp(log_p @ self._chains.T.astype(np.float64))
        return joint


@kernel
def grad_logits(logits: Floats, exposure: Floats, event: Floats, out: Floats) -> None:
    """∂loss/∂logit = exposure·σ(z) − event, (H, n), into ``out``; logits (H, n), the terms' weights (n, H).

    Written as (exposure − event)·σ(z) + event·(σ(z) − 1), which loses no digits where the two nearly cancel.
    """
    for head in range(logits.shape[0]):
        for row in range(logits.shape[1]):
            z = np.float64(logits[head, row])  # float() would leave it a float32
            a, b = np.float64(exposure[row, head]), np.float64(event[row, head])
            out[head, row] = np.float32((a - b) / (1 + math.exp(-z)) - b / (1 + math.exp(z)))
