"""What labelled impressions teach a model's heads: base training's side of `learners.examples.terms`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.examples import Examples
from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD, Terms

Index = NDArray[np.intp]


class Targets(NamedTuple):
    """Labels, bool, weights and shares, float32, of B rows: all (B,) for a model of one head, else (B, H).

    paid : the share of its term softplus(z) that a row pays, see `learners.training.conversion_shares`; −z is paid
    whole.
    """

    labels: NDArray[np.bool_]
    weight: NDArray[np.float32]
    paid: NDArray[np.float32]

    def at(self, index: Index) -> Targets:
        """Those of some of the rows."""
        return Targets(self.labels[index], self.weight[index], self.paid[index])

    def terms(self, of_labels: Terms) -> Terms:
        """The terms of these labels and weights, (B, H), with the shares that are paid."""
        return Terms(of_labels.exposure * self.paid.reshape(of_labels.exposure.shape), of_labels.event)


def outcomes(
    examples: Examples,
    exposures: Index,
    heads: Sequence[str],
    *,
    before_ms: int | None = None,
    shares: NDArray[np.float32] | None = None,
) -> Targets:
    """Of the exposures at ``exposures``: all that is known of their impressions, or was before ``before_ms``.

    Each head's weight is the exposure's; `DeepFM.terms_of_labels` leaves a conversion head the clicked rows. With
    ``shares``, (N,) of all examples, a click's conversion is known whenever it came, and the shares are paid.
    """
    labels = np.stack([_outcome(examples, exposures, head, before_ms, shares) for head in heads], axis=1)
    weight: NDArray[np.float32] = np.repeat(examples.columns["weight"][exposures][:, None], len(heads), axis=1)
    paid = np.ones_like(weight)
    if shares is not None and CONVERSION_HEAD in heads:
        paid[:, list(heads).index(CONVERSION_HEAD)] = shares[exposures]
    return Targets(labels, weight, paid) if len(heads) > 1 else Targets(labels[:, 0], weight[:, 0], paid[:, 0])


def _outcome(
    examples: Examples,
    exposures: Index,
    head: str,
    before_ms: int | None,
    shares: NDArray[np.float32] | None,
) -> NDArray[np.bool_]:
    if head == CLICK_HEAD:
        return examples.clicked(exposures, before_ms=before_ms)
    if head == CONVERSION_HEAD:
        return examples.converted(exposures, before_ms=before_ms if shares is None else None)
    raise ValueError(
        f"head {head!r} must be {CLICK_HEAD!r} or {CONVERSION_HEAD!r}: examples have no other labels, so it would "
        "learn nothing. Name the heads so."
    )
