"""What is remembered of users and of what they saw: the packed states, and how time works on them.

A counter holds total and exponentially decayed sums. Its decayed sums are worth their face value at ``ts_ms``, the
event time of its newest event; at a later time t they are worth ``2^(−(t − ts_ms) / half life)`` of it. Two states of
the same counter, folded from different rows, add up (`merged`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COUNTER = np.dtype(
    [
        ("n", "<f8"),  # displays; f8 counts exactly to 9e15 where f4 stops at 1.7e7
        ("clicks", "<f8"),  # counted when they come: a display is there some seconds before its click
        ("values", "<f8"),  # conversions
        ("recent_n", "<f8"),
        ("recent_clicks", "<f8"),
        ("recent_values", "<f8"),
        ("ts_ms", "<i8"),  # event time of the newest event folded in; 0: nothing yet
    ]
)
REMEMBERED = 8  # displays a user state keeps
USER = np.dtype(
    [
        ("seen_ms", "<i8"),  # newest event time of any kind; 0: a user never seen
        ("display_ms", "<i8"),  # last display
        ("session_start_ms", "<i8"),
        ("click_ms", "<i8"),  # display time of the newest clicked ad
        ("session_impressions", "<u4"),
        ("session_clicks", "<u4"),  # of the session in which click_ms lies
        ("recent_ads", "<u8", (REMEMBERED,)),  # ids of the ads displayed last, newest first
        ("recent_impressions", "<u4", (REMEMBERED,)),  # low halves of their impression ids: a click finds its display
        ("outcomes", "u1"),  # bit k: recent_ads[k] was clicked, as far as is known
        ("outcome_count", "u1"),  # how many of them are real
    ]
)
_SUMS = 6
_MOST_SUM = 1e30  # what a lifetime of conversions is worth is far less, and sums of such sums are finite
_TIME_BITS = 42  # of ms: up to 2109, a little beyond the last time that an event can have
_USER_TIMES = ("seen_ms", "display_ms", "session_start_ms", "click_ms")


class SessionView(NamedTuple):
    """The states that a batch of R requests with B ads in all reads, in the order of its spec's counters.

    users : (R,) USER
    request_counters : (R, spec.request_counters) COUNTER
    ad_counters : (B, spec.ad_counters) COUNTER
    """

    users: NDArray[Any]
    request_counters: NDArray[Any]
    ad_counters: NDArray[Any]


def sums_of(counters: NDArray[Any]) -> NDArray[np.float64]:
    """The six sums of contiguous counters as a view, (..., 6) f8: n, clicks, values, then their decayed twins."""
    return counters.view("<f8").reshape(*counters.shape, _SUMS + 1)[..., :_SUMS]


def impossible_states(states: NDArray[Any]) -> NDArray[np.bool_]:
    """(B,) which of B contiguous states, USER or COUNTER, no fold has written: times, sums or counts that none has.

    A time near the end of 64 bits would turn an age negative, by which a decayed sum grows beyond all numbers.
    """
    if states.dtype == USER:
        times = np.bitwise_or.reduce([states[name] for name in _USER_TIMES])
        return np.asarray((times >> _TIME_BITS != 0) | (states["outcome_count"] > REMEMBERED))
    sums, late = sums_of(states), states["ts_ms"] >> _TIME_BITS != 0
    if sums.min(initial=0) >= 0 and sums.max(initial=0) <= _MOST_SUM:  # by far the usual case; false for NaN
        return np.asarray(late)
    sound = (np.abs(sums) <= _MOST_SUM).all(axis=-1)  # false for NaN
    sound &= (sums.reshape(*states.shape, 2, 3)[..., :2] >= 0).all(axis=(-1, -2))  # values may be negative
    return np.asarray(~sound | late)


def decay(age_ms: NDArray[np.int64], half_life_ms: float) -> NDArray[np.float64]:
    """What is left of a decayed sum after ``age_ms``, in (0, 1]; a negative age (clocks differ) counts as none."""
    weight: NDArray[np.float64] = np.exp2(np.maximum(age_ms, 0) / -half_life_ms)
    return weight


def merged(parts: NDArray[Any], half_life_ms: float) -> NDArray[Any]:
    """The sums of several states of the same counters: (P, K) COUNTER to (K,) COUNTER, decayed to the newest ts_ms."""
    total = np.zeros(parts.shape[1:], dtype=COUNTER)
    total["ts_ms"] = parts["ts_ms"].max(axis=0, initial=0)
    parts = np.ascontiguousarray(parts)
    sums = sums_of(parts).copy()
    sums[..., 3:] *= decay(total["ts_ms"] - parts["ts_ms"], half_life_ms)[..., None]
    sums_of(total)[...] = sums.sum(axis=0)
    return total
