"""Kernel of the session fold: every event by itself, in the order of the log.

So the bits of a state, rounding included, follow from the log alone, however it was cut into records and steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.session_state import REMEMBERED
from learners.kernel import kernel

MISSING = -1
"""The index of a key that is 0."""


class Rules(NamedTuple):
    """What decides, in ms."""

    gap_ms: int
    own_ttl_ms: int
    shared_ttl_ms: int
    half_life_ms: float


class EventColumns(NamedTuple):
    """B events: what each says, and the indices of its user and of its C counters, or `MISSING`."""

    kind: NDArray[np.uint8]  # (B,)
    impression: NDArray[np.uint32]  # (B,) the low half of its id
    ts_ms: NDArray[np.int64]  # (B,) display time
    known_ms: NDArray[np.int64]  # (B,) of the event itself
    ad: NDArray[np.uint64]  # (B,)
    user: NDArray[np.int64]  # (B,)
    counters: NDArray[np.int64]  # (B, C)


@kernel
def fold_users(users: NDArray[Any], events: EventColumns, rules: Rules) -> None:
    """Move gap, session and last outcomes at the display, clicked outcomes and session clicks at the click."""
    for row in range(len(events.user)):
        if events.user[row] == MISSING:
            continue
        user, kind, now = users[events.user[row]], events.kind[row], events.known_ms[row]
        _reset_expired(user, now, rules.own_ttl_ms)
        if kind == EXPOSURE:
            _display(user, now, rules.gap_ms)
            _remember(user, events.ad[row], events.impression[row])
        elif kind == CLICK:
            _click(user, events.ad[row], events.impression[row])
            _count_click(user, events.ts_ms[row])


@kernel
def fold_counters(counters: NDArray[Any], own: NDArray[np.bool_], events: EventColumns, rules: Rules) -> None:
    """Count displays, clicks and conversions, each when it happens; ``own`` (C,) are those that belong to a user."""
    for row in range(len(events.user)):
        kind, now = events.kind[row], events.known_ms[row]
        for column in range(len(own)):
            at = events.counters[row, column]
            if at == MISSING:
                continue
            counter = counters[at]
            ttl_ms = rules.own_ttl_ms if own[column] else rules.shared_ttl_ms
            weight = _pass_time(counter, now, ttl_ms, rules.half_life_ms)
            if kind == EXPOSURE:
                counter.n += 1.0
                counter.recent_n += weight
            elif kind == CLICK:
                counter.clicks += 1.0
                counter.recent_clicks += weight
            elif kind == CONVERSION:
                counter.values += 1.0
                counter.recent_values += weight


@kernel
def _reset_expired(user: Any, now: int, ttl_ms: int) -> None:
    """Reset a user who was away for longer than the expiry, and note that it was seen."""
    if now - user.seen_ms > ttl_ms:
        user.seen_ms = 0
        user.display_ms = 0
        user.session_start_ms = 0
        user.click_ms = 0
        user.session_impressions = 0
        user.session_clicks = 0
        for bit in range(REMEMBERED):
            user.recent_ads[bit] = 0
            user.recent_impressions[bit] = 0
        user.outcomes = 0
        user.outcome_count = 0
    user.seen_ms = max(user.seen_ms, now)


@kernel
def _display(user: Any, now: int, gap_ms: int) -> None:
    """Move the gap and the session."""
    if user.display_ms == 0 or now - user.display_ms >= gap_ms:
        user.session_start_ms = now
        user.session_impressions = 0
    user.session_impressions += 1
    user.display_ms = max(user.display_ms, now)


@kernel
def _remember(user: Any, ad: np.uint64, impression: np.uint32) -> None:
    """Shift one display in as not clicked, newest first."""
    for bit in range(REMEMBERED - 1, 0, -1):
        user.recent_ads[bit] = user.recent_ads[bit - 1]
        user.recent_impressions[bit] = user.recent_impressions[bit - 1]
    user.recent_ads[0] = ad
    user.recent_impressions[0] = impression
    user.outcomes = (user.outcomes << 1) & 0xFF
    user.outcome_count = min(user.outcome_count + 1, REMEMBERED)


@kernel
def _click(user: Any, ad: np.uint64, impression: np.uint32) -> None:
    """Turn the outcome of the impression's display into a click, if it is still remembered."""
    for bit in range(user.outcome_count):
        if user.recent_impressions[bit] == impression and user.recent_ads[bit] == ad:
            user.outcomes |= 1 << bit
            return


@kernel
def _count_click(user: Any, shown_ms: int) -> None:
    """Count a click if its display belongs to the session that is on; a click of an earlier one only dates itself."""
    if user.click_ms < user.session_start_ms:
        user.session_clicks = 0
    if shown_ms >= user.session_start_ms:
        user.session_clicks += 1
    user.click_ms = max(user.click_ms, shown_ms)


@kernel
def _pass_time(counter: Any, now: int, ttl_ms: int, half_life_ms: float) -> float:
    """Let a counter age until ``now``, or expire; what one more event of that time weighs in its decayed sums."""
    before = counter.ts_ms
    if now - before > ttl_ms:
        counter.n = counter.clicks = counter.values = 0.0
        counter.recent_n = counter.recent_clicks = counter.recent_values = 0.0
        counter.ts_ms = now
        return 1.0
    if now <= before:
        weight: float = np.exp2((now - before) / half_life_ms)
        return weight
    left = np.exp2((before - now) / half_life_ms)
    counter.recent_n *= left
    counter.recent_clicks *= left
    counter.recent_values *= left
    counter.ts_ms = now
    return 1.0
