"""The measured law of delays: which share of the clicks (or conversions) has come at an age.

Clicks are seen only once they have come, so a young log shows short delays only, and a rising one shows too many of
them: the delays are truncated on the right, by the age of their display. Lynden-Bell, A method of allowing for known
observational selection (1971); Woodroofe, Estimating a distribution function with truncated data (1985): with
G(j) = P(delay in bin j | delay <= edge j), the reverse hazard,

    F(edge j) = product over k > j of (1 − G(k)),   G(k) = num(k) / den(k),

where den(k) counts the clicks that came within edge k, of the displays that are older than edge k, and num(k) those of
them that lie in bin k. Displays of every age count alike in the two, so F depends neither on traffic nor on the click
rate, and a silence changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from calibration.delay_prior import DelayPrior
from calibration.distrust import check_delays

_FIRST_EDGE_MS: Final = 250
_BINS_PER_DOUBLING: Final = 4
_UNITS_PER_EVENT: Final = 1024  # so that halving loses nothing that matters
_SHORTEST_COHORT_MS: Final = 32
_MEDIAN_STEPS: Final = np.linspace(-12.0, 6.0, 73)  # natural logarithm of what the prior's median is multiplied by
_SIGMAS: Final = (1.0, 0.5, 0.25)  # what its sigma is
_WIDTHS_PER_EDGE: Final = 8  # a cohort spans at most this part of the age it waits for


class DelayLaw:
    """Share F(age) of the events within ``horizon_s`` that come within an age, as measured.

    Events wait in cohorts of display time until their display is older than an edge; then they count for it. So a bin
    learns from the newest displays that can tell about it: seconds old for short delays, a day for a day. Bins are
    a quarter of a doubling wide; F is exact at their edges and straight in log(age) between them.

    Parameters
    ----------
    horizon_s : later events never come: F(horizon) = 1. That of the join, ``click_horizon_s``.
    memory_events : a bin that has seen twice as many forgets half of its evidence.

    It holds no clock: `advance` says up to which event time everything is known (the watermark of the examples).
    """

    def __init__(
        self, horizon_s: float = 86_400.0, *, prior: DelayPrior | None = None, memory_events: int = 4_096
    ) -> None:
        if not _FIRST_EDGE_MS < horizon_s * 1000.0 < math.inf:
            raise ValueError(
                f"horizon_s={horizon_s} must be finite and longer than {_FIRST_EDGE_MS / 1000} s, the first bin: no "
                "delay could be distinguished from another. Give the join's click_horizon_s."
            )
        if memory_events < 1:
            raise ValueError(f"memory_events={memory_events} must be 1 or more: nothing would be learned. Use 4096.")
        self.horizon_s = float(horizon_s)
        self.prior = prior or DelayPrior()
        self.memory_events = memory_events
        self.now_ms = 0
        bins = len(self.edges_ms) - 1
        self._num: NDArray[np.int64] = np.zeros(bins + 1, np.int64)  # [k] of the bin that ends at edge k; [0] unused
        self._den: NDArray[np.int64] = np.zeros(bins + 1, np.int64)
        self._waiting: NDArray[np.int64] = np.zeros((0, 4), np.int64)

    @cached_property
    def edges_ms(self) -> NDArray[np.int64]:
        """Edges of the bins of delay, from 0 to the horizon."""
        return _edges(self.horizon_s)

    @cached_property
    def _widths_ms(self) -> NDArray[np.int64]:
        """Span of a cohort whose displays have passed edge k."""
        longest = np.maximum(self.edges_ms / _WIDTHS_PER_EDGE, _SHORTEST_COHORT_MS)
        return (2 ** np.floor(np.log2(longest))).astype(np.int64)

    @cached_property
    def prior_hazard(self) -> NDArray[np.float64]:
        """G of the prior for every bin; [0] unused."""
        return _hazard(self.prior, self.edges_ms)

    def _likely_hazard(self) -> NDArray[np.float64]:
        """G of the prior that is most likely by the delays seen so far, given that they were seen."""
        if not self.prior.median_spread:
            return self.prior_hazard
        found = _candidates(self.prior, self.horizon_s)
        num, den = self._num[2:] / _UNITS_PER_EVENT, self._den[2:] / _UNITS_PER_EVENT
        likelihood = found.log_prior + found.log_hazard @ num + found.log_rest @ (den - num)
        return np.asarray(found.hazard[int(likelihood.argmax())])

    @property
    def events(self) -> int:
        """Events that the best known bin remembers, and those that no bin has counted yet."""
        return int(self._den.max()) // _UNITS_PER_EVENT + int(self._waiting[self._waiting[:, 2] > 0, 3].sum())

    def add(self, ts_ms: NDArray[np.int64], delay_ms: NDArray[np.int64]) -> int:
        """Events of displays at ``ts_ms`` (of clicks, for conversions), (B,), that came ``delay_ms`` after; any order.

        Returns how many were left out because their delay is negative or beyond the horizon.
        """
        ts_ms, delay_ms = np.asarray(ts_ms, np.int64), np.asarray(delay_ms, np.int64)
        if ts_ms.ndim != 1 or ts_ms.shape != delay_ms.shape:
            raise ValueError(f"ts_ms {ts_ms.shape} and delay_ms {delay_ms.shape} must be 1-d of one length: pair them.")
        fits = (delay_ms >= 0) & (delay_ms <= self.edges_ms[-1])
        if fits.any():
            bins = np.maximum(np.searchsorted(self.edges_ms, delay_ms[fits], side="left"), 1)
            start = ts_ms[fits] // self._widths_ms[0] * self._widths_ms[0]
            fresh = np.stack([np.zeros_like(bins), start, bins, np.ones_like(bins)], axis=1)
            self._waiting = _folded(np.concatenate([self._waiting, fresh]))
        return int(np.count_nonzero(~fits))

    def advance(self, now_ms: int) -> None:
        """Everything up to ``now_ms`` is known: what waited for an edge that its displays have passed, counts."""
        self.now_ms = max(self.now_ms, int(now_ms))
        passed, start, bins, events = self._waiting.T
        age = self.now_ms - start - self._widths_ms[passed]
        reached = np.maximum(np.searchsorted(self.edges_ms, age, side="right") - 1, passed)
        moved = reached > passed
        if not moved.any():
            return
        counted = moved & (bins > 0) & (bins <= reached)
        units = events * _UNITS_PER_EVENT
        np.add.at(self._num, bins[counted], units[counted])
        steps = np.zeros(len(self._den) + 1, np.int64)
        counts = moved & (bins <= reached)
        np.add.at(steps, np.maximum(passed, bins - 1)[counts] + 1, units[counts])
        np.add.at(steps, reached[counts] + 1, -units[counts])
        self._den += np.cumsum(steps)[:-1]
        width = self._widths_ms[reached]
        left = np.stack([reached, start // width * width, np.where(bins <= reached, 0, bins), events], axis=1)
        self._waiting = _folded(left[reached < len(self._den) - 1])
        self._forget()

    def share(self, age_ms: NDArray[Any]) -> NDArray[np.float64]:
        """F(age): the share in [0, 1] of the events that come within ages, (B,) in ms; 1 from the horizon on."""
        return np.interp(np.asarray(age_ms, np.float64), *self._curve())

    def quantile(self, u: NDArray[Any] | float) -> NDArray[np.float64]:
        """The delays in ms that a share ``u`` in [0, 1] of the events does not exceed."""
        u = np.asarray(u, np.float64)
        if not ((u >= 0) & (u <= 1)).all():
            raise ValueError(f"u={u} is outside [0, 1]: no delay has such a share. Pass 0.5 for the median.")
        ages, shares = self._curve()
        return np.asarray(np.interp(u, shares + np.arange(len(shares)) * 1e-15, ages))

    def merge(self, other: DelayLaw) -> None:
        """Add the evidence of another worker. Raises ValueError for one of another horizon."""
        if other.horizon_s != self.horizon_s:
            raise ValueError(
                f"delay laws of horizons {self.horizon_s} s and {other.horizon_s} s have other bins and do not add. "
                "Run every worker with one horizon."
            )
        self._num, self._den = self._num + other._num, self._den + other._den
        self._waiting = _folded(np.concatenate([self._waiting, other._waiting]))
        self.now_ms = max(self.now_ms, other.now_ms)

    def copy(self) -> DelayLaw:
        """An independent law of the same evidence."""
        return DelayLaw.from_state(self.state(), prior=self.prior, memory_events=self.memory_events)

    def state(self) -> dict[str, NDArray[Any]]:
        """What `from_state` needs to go on bit-equal: arrays only, copies."""
        return {
            "clock": np.array([round(self.horizon_s * 1000), self.now_ms], np.int64),
            "counts": np.stack([self._num, self._den]),
            "waiting": self._waiting.copy(),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, NDArray[Any]], *, prior: DelayPrior | None = None, memory_events: int = 4_096
    ) -> Self:
        """The law that ``state`` was taken from. Raises ValueError for arrays that are not a law's."""
        try:
            horizon_ms, now_ms = (int(at) for at in state["clock"])
            law = cls(horizon_ms / 1000.0, prior=prior, memory_events=memory_events)
            counts, waiting = np.array(state["counts"], np.int64), np.array(state["waiting"], np.int64)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                f"no state of a delay law ({error}): it was written by something else; drop it."
            ) from error
        if counts.shape != (2, len(law._den)) or waiting.ndim != 2 or waiting.shape[1] != 4:
            raise ValueError(f"delay law of {counts.shape} counts, expected {(2, len(law._den))}: it was cut; drop it.")
        check_delays(counts, waiting, now_ms)
        law._num, law._den = counts
        law._waiting, law.now_ms = waiting, now_ms
        return law

    def magnitude(self) -> float:
        """The largest sum of its counts."""
        return max(float(one.sum(dtype=np.float64)) for one in (self._num, self._den, self._waiting[:, 3]))

    def _curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ages in ms and F at them: the edges, and points between them that are straight in log(age)."""
        weight = self.prior.events
        num, den = self._num / _UNITS_PER_EVENT, self._den / _UNITS_PER_EVENT
        hazard = (num + weight * self._likely_hazard()) / (den + weight)
        shares = np.append(0.0, np.cumprod((1.0 - hazard)[:1:-1])[::-1])
        shares = np.append(shares, 1.0)
        edges = self.edges_ms.astype(np.float64)
        low, high = edges[1:-1, None], edges[2:, None]
        steps = np.arange(4) / 4
        ages = (low * (high / low) ** steps).ravel()
        between = (shares[1:-1, None] + (shares[2:] - shares[1:-1])[:, None] * steps).ravel()
        return np.concatenate([[0.0], ages, edges[-1:]]), np.concatenate([[0.0], between, [1.0]])

    def _forget(self) -> None:
        full = self._den > 2 * self.memory_events * _UNITS_PER_EVENT
        while full.any():
            self._num[full] >>= 1
            self._den[full] >>= 1
            full = self._den > 2 * self.memory_events * _UNITS_PER_EVENT


class _Candidates(NamedTuple):
    """Laws that a prior with an uncertain median may turn out to be."""

    hazard: NDArray[np.float64]  # (C, bins + 1) G of each
    log_prior: NDArray[np.float64]  # (C,)
    log_hazard: NDArray[np.float64]  # (C, bins - 1) log G from bin 2 on
    log_rest: NDArray[np.float64]  # the same of 1 - G


def _edges(horizon_s: float) -> NDArray[np.int64]:
    horizon_ms = round(horizon_s * 1000)
    bins = math.ceil(_BINS_PER_DOUBLING * math.log2(horizon_ms / _FIRST_EDGE_MS))
    inner = np.floor(_FIRST_EDGE_MS * 2.0 ** (np.arange(bins) / _BINS_PER_DOUBLING)).astype(np.int64)
    return np.concatenate([[0], inner, [horizon_ms]])


@cache
def _candidates(prior: DelayPrior, horizon_s: float) -> _Candidates:
    edges_ms = _edges(horizon_s)
    tried = [(step, sigma) for step in _MEDIAN_STEPS.tolist() for sigma in _SIGMAS]
    hazard = np.stack([_hazard(prior.scaled(math.exp(step), sigma), edges_ms) for step, sigma in tried])
    inner = np.clip(hazard[:, 2:], 1e-9, 1.0 - 1e-9)
    log_prior = np.array([-((step / prior.median_spread) ** 2) / 2 for step, _ in tried])
    return _Candidates(hazard, log_prior, np.log(inner), np.log1p(-inner))


def _hazard(prior: DelayPrior, edges_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """G for every bin; [0] unused."""
    share = prior.share(edges_ms.astype(np.float64))
    hazard = 1.0 - np.append(0.0, share[:-1]) / np.maximum(share, 1e-300)
    hazard[:2] = 1.0  # nothing comes before the first bin
    return np.asarray(np.where(share > 0, hazard, 1.0))


def merged_law(laws: Sequence[DelayLaw]) -> DelayLaw:
    """One law of the evidence of one or more workers."""
    total = laws[0].copy()
    for other in laws[1:]:
        total.merge(other)
    return total


def _folded(waiting: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up the events of equal edge, start and bin; sorted, so that equal contents are equal bits."""
    if not len(waiting):
        return waiting
    order = np.lexsort((waiting[:, 2], waiting[:, 1], waiting[:, 0]))
    rows = waiting[order]
    first = np.append(True, (rows[1:, :3] != rows[:-1, :3]).any(axis=1))
    starts = np.flatnonzero(first)
    return np.column_stack([rows[starts, :3], np.add.reduceat(rows[:, 3], starts)])
