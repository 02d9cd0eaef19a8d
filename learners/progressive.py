"""Progressive quality of a stream of examples, from the two terms that its rows pay: nothing waits for a label.

An exposure is scored when it is displayed, its click when it comes. Sums over both are those of labelled rows as far
as the clicks among them belong to the exposures among them: exactly at rest, late by the clicks' delay otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.metrics import Floats, Quality, divided, entropy, probability
from learners.terms import Terms


def terms_quality(logits: Floats, terms: Terms) -> Quality:
    """The four figures of B rows that were scored before they were learned; terms (B,).

    The AUC is over pairs of a click and an impression without one. Exposures hold both kinds: with π, the clicks'
    share of the exposures, P(click's logit > exposure's) = (1 − π)·AUC + π/2, so AUC = (that − π/2) / (1 − π).
    """
    z, exposure, event = (np.asarray(column, np.float64) for column in (logits, *terms))
    exposures, clicks = float(exposure.sum()), float(event.sum())
    rate = divided(clicks, exposures)
    loss = divided(float((exposure * np.logaddexp(0.0, z)).sum() - (event * z)[event > 0].sum()), exposures)
    return Quality(
        rows=round(exposures),
        auc=divided(_share_above(z, exposure, event) - rate / 2, 1 - rate) if 0 < rate < 1 else float("nan"),
        log_loss=loss,
        ne=loss / entropy(rate),
        observed_over_expected=divided(clicks, float((exposure * probability(z)).sum())),
    )


def _share_above(z: NDArray[np.float64], exposure: NDArray[np.float64], event: NDArray[np.float64]) -> float:
    """The weighted share of (event, exposure) pairs in which the event's logit is above, equal ones counting half."""
    _, inverse = np.unique(z, return_inverse=True)
    exposures, events = np.bincount(inverse, exposure), np.bincount(inverse, event)
    below = np.cumsum(exposures) - exposures / 2
    return divided(float((events * below).sum()), float(events.sum()) * float(exposures.sum()))
