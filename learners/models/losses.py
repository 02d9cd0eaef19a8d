"""How a click that comes after its display is learned: the split of the log loss, and what else the field does.

A display i is clicked with probability p after a delay h, or never. What a learner sees of it, and when, is
`Loss.seen`; what it pays for that, `Loss.terms`; what its logit then says of p, `Loss.logit`. Importance weights are
taken at the probability f of the model before it learns the row, as constants. With F(e) = P(h ≤ e | click) the delay
law, p_dp = p·(1 − F(e)) is the probability of a delayed positive: a click that has not come at age e.

| loss | rows of a display | expected gradient of them all |
|---|---|---|
| `Split` | exposure at 0, click at h | f − p |
| `FakeNegativeWeighted` | negative at 0, positive at h | (1 − f²)·(f − p) |
| `FakeNegativeCalibrated` | negative at 0, positive at h | f·(1 + p) − p: 0 at f = p/(1 + p) |
| `ElapsedTimeSampled` | what is so at e, positive at h > e | (1 + p_dp)·(1 − f)/(1 − F·f)·(f − p), p_dp at f |
| `RealNegatives` | the same, and the truth once more when it is sure | 0 at f = p, its slope there about 2 |
| `Waiting` | what is so at the window's end | f − p·F(window) |

`tests/learners/models/test_losses.py` holds each of them to the last column.
Shapes: N displays, M rows seen, B rows learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.logistic import sigmoid
from learners.examples.terms import Terms

Floats = NDArray[np.float32] | NDArray[np.float64]
Labels = NDArray[np.bool_]


class Seen(NamedTuple):
    """Rows that a learner gets to see of N displays: (M,) each.

    display : which of them · age_s : after its display · positive : whether the row says click.
    """

    display: NDArray[np.intp]
    age_s: NDArray[np.float64]
    positive: Labels


class Loss(Protocol):
    """One way to learn from delayed clicks."""

    def seen(self, delay_s: NDArray[np.float64]) -> Seen:
        """The rows of displays whose clicks come after ``delay_s`` (N,), infinite for none."""
        ...

    def terms(self, positive: Labels, logit: Floats, p_delayed: Floats | None = None) -> Terms:
        """What rows pay, (B,): ``positive`` as `seen` says, ``logit`` of the model before it learns them.

        ``p_delayed`` is p_dp by a head that was learned for it; without it, the delay law's (1 − F(e))·f.
        """
        ...

    def logit(self, logit: Floats) -> NDArray[np.float64]:
        """The log-odds of a click, from the model's logits (B,)."""
        ...


class _AsItIs:
    """The model's logit is that of p."""

    def logit(self, logit: Floats) -> NDArray[np.float64]:
        """Unchanged."""
        return np.asarray(logit, np.float64)


@dataclass(frozen=True, slots=True)
class Split(_AsItIs):
    """softplus(z) at the display, −z at the click: the terms of the log loss (`learners.examples.terms`). The default.

    Exact, not by importance: no weight depends on the model, so nothing is biased while the model is wrong.
    """

    def seen(self, delay_s: NDArray[np.float64]) -> Seen:
        """An exposure at once, a click when it comes."""
        return _exposures_and_clicks(delay_s)

    def terms(self, positive: Labels, logit: Floats, p_delayed: Floats | None = None) -> Terms:
        """(1, 0) of an exposure, (0, 1) of a click."""
        return Terms((~positive).astype(np.float32), positive.astype(np.float32))


@dataclass(frozen=True, slots=True)
class FakeNegativeWeighted(_AsItIs):
    """FNW: every display a negative at once, its click a positive as well, weighed back to the true distribution.

    S. I. Ktena et al., "Addressing Delayed Feedback for Continuous Training with Neural Networks in CTR prediction",
    RecSys 2019, section 4.3: the rows are clicks with probability b = p/(1 + p), so the weights are p/b = 1 + f of a
    positive and (1 − p)/(1 − b) = (1 − f)(1 + f) of a negative.
    """

    def seen(self, delay_s: NDArray[np.float64]) -> Seen:
        """A negative at once, a positive when the click comes."""
        return _exposures_and_clicks(delay_s)

    def terms(self, positive: Labels, logit: Floats, p_delayed: Floats | None = None) -> Terms:
        """Labelled rows with the weights above."""
        f = sigmoid(np.asarray(logit))
        return _weighed(positive, 1 + f, (1 - f) * (1 + f))


@dataclass(frozen=True, slots=True)
class FakeNegativeCalibrated:
    """FNC: the rows of FNW without weights; the model learns b = p/(1 + p) and is corrected when it predicts.

    Ktena et al. 2019, section 4.4: p = b/(1 − b), which is e^z of the learned logit z. It passes 1 where z > 0.
    """

    largest_p: float = 1 - 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.largest_p < 1:
            raise ValueError(
                f"largest_p={self.largest_p} must lie between 0 and 1: a logit above 0 stands for more than every "
                "display. Take 0.999."
            )

    def seen(self, delay_s: NDArray[np.float64]) -> Seen:
        """A negative at once, a positive when the click comes."""
        return _exposures_and_clicks(delay_s)

    def terms(self, positive: Labels, logit: Floats, p_delayed: Floats | None = None) -> Terms:
        """Labelled rows of weight 1."""
        return _weighed(positive, 1.0, 1.0)

    def logit(self, logit: Floats) -> NDArray[np.float64]:
        """The log-odds of p, log p − log(1 − p), with p = e^z, at most ``largest_p``."""
        log_p = np.minimum(np.asarray(logit, np.float64), math.log(self.largest_p))
        return np.asarray(log_p - np.log(-np.expm1(log_p)))


@dataclass(frozen=True, slots=True)
class ElapsedTimeSampled(_AsItIs):
    """ES-DFM: a display is learned at age e as it then stands, a click that comes later as a positive once more.

    J.-Q. Yang et al., "Capturing Delayed Feedback in Conversion Rate Prediction via Elapsed-Time Sampling", AAAI 2021,
    equations 7-12: a positive weighs 1 + p_dp, a negative (1 + p_dp)·p_rn, where p_rn = (1 − p)/(1 − p + p_dp) is the
    probability that a negative at e is a real one. With e = 0 it is `FakeNegativeWeighted`.

    Parameters
    ----------
    elapsed_s
        e.
    share
        F(e): of the clicks that ever come.
    """

    elapsed_s: float
    share: float

    def __post_init__(self) -> None:
        _check_share(self.elapsed_s, self.share)

    def seen(self, delay_s: NDArray[np.float64]) -> Seen:
        """The display at e, positive if its click has come; a later click when it comes."""
        return _elapsed(delay_s, self.elapsed_s)

    def terms(self, positive: Labels, logit: Floats, p_delayed: Floats | None = None) -> Terms:
        """Labelled rows with the weights above."""
        f = sigmoid(np.asarray(logit))
        p_dp = (1 - self.share) * f if p_delayed is None else p_delayed
        return _weighed(positive, 1 + p_dp, (1 + p_dp) * (1 - f) / (1 - f + p_dp))


@dataclass(frozen=True, slots=True)
class RealNegatives(_AsItIs):
    """DEFER: as ES-DFM, and every display once more with its true label, so that each is seen exactly twice.

    S. Gu et al., "Real Negatives Matter: Continuous Training with Real Negatives for Delayed Feedback Modeling", KDD
    2021, equations 9-12: of the two rows a share p − p_dp/2 is positive; a positive weighs p/(p − p_dp/2), a negative
    (1 − p)/(1 − p + p_dp/2). The second row of a click at most e old comes at e as well, that of a later one when it
    comes, that of no click at the end of the attribution window.

    Parameters
    ----------
    elapsed_s, share
        As in `ElapsedTimeSampled`.
    window_s
        Age at which a display without a click is a real negative. A click that comes later is lost.
    """

    elapsed_s: float
    share: float
    window_s: float

    def __post_init__(self) -> None:
        _check_share(self.elapsed_s, self.share)
        if not self.window_s > self.elapsed_s:
            raise ValueError(
                f"window_s={self.window_s} must be longer than elapsed_s={self.elapsed_s}: the real negatives come "
                "after the elapsed ones. Raise it."
            )

    def seen(self, delay_s: NDArray[np.float64]) -> Seen:
        """The display at e as it then stands, and once more when its label is sure."""
        first = _elapsed(np.where(delay_s <= self.window_s, delay_s, math.inf), self.elapsed_s)
        clicked = delay_s <= self.window_s
        again = np.flatnonzero(~clicked | (delay_s <= self.elapsed_s))
        age_s = np.where(clicked[again], self.elapsed_s, self.window_s)
        return _joined(first, Seen(again, age_s, clicked[again]))

    def terms(self, positive: Labels, logit: Floats, p_delayed: Floats | None = None) -> Terms:
        """Labelled rows with the weights above; p_dp is at most p."""
        f = np.maximum(sigmoid(np.asarray(logit)), np.finfo(np.float64).tiny)
        half = 0.5 * ((1 - self.share) * f if p_delayed is None else np.minimum(p_delayed, f))
        return _weighed(positive, f / (f - half), (1 - f) / (1 - f + half))


@dataclass(frozen=True, slots=True)
class Waiting(_AsItIs):
    """A display is learned when its window has passed, with the label that it then has; later clicks are lost.

    Unbiased only in a steady state, and up to F(window): what is learned now is what was displayed a window ago.
    """

    window_s: float

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ValueError(
                f"window_s={self.window_s} must be positive: no click would have come yet. Take the age at which "
                "nearly all have."
            )

    def seen(self, delay_s: NDArray[np.float64]) -> Seen:
        """The display at the window's end."""
        displays = np.arange(len(delay_s))
        return Seen(displays, np.full(len(delay_s), float(self.window_s)), delay_s <= self.window_s)

    def terms(self, positive: Labels, logit: Floats, p_delayed: Floats | None = None) -> Terms:
        """Labelled rows of weight 1."""
        return _weighed(positive, 1.0, 1.0)


LOSSES: Mapping[str, type[Loss]] = {
    "split": Split,
    "fnw": FakeNegativeWeighted,
    "fnc": FakeNegativeCalibrated,
    "es_dfm": ElapsedTimeSampled,
    "defer": RealNegatives,
    "waiting": Waiting,
}
"""By the names that the field uses."""


def losses_of(elapsed_s: float, share: float, *, window_s: float, real_after_s: float | None = None) -> dict[str, Loss]:
    """One of each.

    ``share`` of the clicks has come ``elapsed_s`` after the display; waiting waits for ``window_s``, and the real
    negatives are seen after ``real_after_s`` (the same unless given).
    """
    return {
        "split": Split(),
        "fnw": FakeNegativeWeighted(),
        "fnc": FakeNegativeCalibrated(),
        "es_dfm": ElapsedTimeSampled(elapsed_s, share),
        "defer": RealNegatives(elapsed_s, share, window_s if real_after_s is None else real_after_s),
        "waiting": Waiting(window_s),
    }


def _check_share(elapsed_s: float, share: float) -> None:
    if not (elapsed_s >= 0 and 0 <= share <= 1):
        raise ValueError(
            f"elapsed_s={elapsed_s} must not be negative and share={share} must lie in [0, 1]: it is the share of the "
            "clicks that come no later, and weighs the others. Take it from the measured delay law."
        )


def _exposures_and_clicks(delay_s: NDArray[np.float64]) -> Seen:
    clicked, displays = np.flatnonzero(np.isfinite(delay_s)), np.arange(len(delay_s))
    return _joined(
        Seen(displays, np.zeros(len(delay_s)), np.zeros(len(delay_s), np.bool_)),
        Seen(clicked, delay_s[clicked], np.ones(len(clicked), np.bool_)),
    )


def _elapsed(delay_s: NDArray[np.float64], elapsed_s: float) -> Seen:
    displays, late = np.arange(len(delay_s)), np.flatnonzero(np.isfinite(delay_s) & (delay_s > elapsed_s))
    return _joined(
        Seen(displays, np.full(len(delay_s), float(elapsed_s)), delay_s <= elapsed_s),
        Seen(late, delay_s[late], np.ones(len(late), np.bool_)),
    )


def _joined(first: Seen, second: Seen) -> Seen:
    return Seen(*(np.concatenate(columns) for columns in zip(first, second, strict=True)))


def _weighed(positive: Labels, of_positive: Floats | float, of_negative: Floats | float) -> Terms:
    return Terms.of_labels(positive, np.where(positive, of_positive, of_negative).astype(np.float32))
