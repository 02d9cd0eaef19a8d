"""The fold of displays and outcomes into session state: plain functions over arrays, no store and no clock.

A partition's state has two ordered sources, each behind its own offset in the `Fence`: *displays* (impressions as they
happen) move the gap and the session; *outcomes* (examples as the join settles them) move counters, last outcomes and
session clicks. What they write does not overlap, so that how the two interleave hardly matters; fold displays first.

One step is: `SessionFold.keys` names the states that a batch touches, a store loads them, `SessionFold.fold` returns
them changed, the store applies them together with the new fence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.kinds import CONVERSION, CORRECTION, SETTLED
from learners.session_state import COUNTER, REMEMBERED, USER, decay, sums_of
from learners.spec import FeatureSpec


class Fence(NamedTuple):
    """The first offset of each source that a partition's session state does not hold."""

    displays: int = 0
    examples: int = 0


class Displays(NamedTuple):
    """B displayed impressions in log order."""

    user_key: NDArray[np.uint64]  # (B,)
    ts_ms: NDArray[np.int64]  # (B,)


class Outcomes(Protocol):
    """B examples in log order; ``stream.examples.ExampleRows`` is one."""

    @property
    def kind(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def label(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def user_key(self) -> NDArray[np.uint64]: ...  # noqa: D102
    @property
    def ts_ms(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def known_ms(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def ids(self) -> NDArray[np.uint64]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, eq=False)
class SessionKeys:
    """Which states a batch touches; keys ascend, each once, 0 (missing) never."""

    users: NDArray[np.uint64]  # (U,)
    counters: NDArray[np.uint64]  # (K,)
    owners: NDArray[np.uint64]  # (K,) the user key of a user's own counter; 0: shared


@dataclass(frozen=True, slots=True, eq=False)
class SessionStates:
    """The states of such keys; all zeros where there was none."""

    keys: SessionKeys
    users: NDArray[Any]  # (U,) USER
    counters: NDArray[Any]  # (K,) COUNTER


class SessionFold:
    """Folds batches of one partition under one feature spec. The result does not depend on how batches are cut."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._columns = np.array(spec.counter_columns, np.intp)
        self._own = np.array([spec.own(counter) for counter in spec.counters], bool)
        self._half_life_ms = spec.rates.half_life_s * 1000
        self._own_ttl_ms = round(spec.rates.own_ttl_s * 1000)
        self._shared_ttl_ms = round(spec.rates.shared_ttl_s * 1000)
        self._gap_ms = round(spec.session.gap_s * 1000)

    def keys(self, displays: Displays | None, outcomes: Outcomes | None) -> SessionKeys:
        """The states that a batch touches."""
        users = [rows.user_key for rows in (displays, outcomes) if rows is not None]
        user_keys = np.unique(np.concatenate(users)) if users else np.zeros(0, np.uint64)
        user_keys = user_keys[np.searchsorted(user_keys, 1) :]  # 0 names nobody
        if outcomes is None or not len(outcomes.ids):
            return SessionKeys(user_keys, np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        flat = outcomes.ids[:, self._columns]
        counters, first = np.unique(flat, return_index=True)
        owners = np.where(self._own, outcomes.user_key[:, None], np.uint64(0)).ravel()[first]
        present = slice(int(np.searchsorted(counters, 1)), None)
        return SessionKeys(user_keys, counters[present], owners[present])

    def fold(self, states: SessionStates, displays: Displays | None, outcomes: Outcomes | None) -> SessionStates:
        """The states after the batch; ``states`` are those of `keys` and stay as they are."""
        users, counters = states.users.copy(), states.counters.copy()
        if displays is not None:
            self._fold_displays(states.keys.users, users, displays)
        if outcomes is not None and len(outcomes.ids):
            self._fold_user_outcomes(states.keys.users, users, outcomes)
            for part in _spans(outcomes.known_ms, min(self._own_ttl_ms, self._shared_ttl_ms)):
                self._fold_counters(states.keys, counters, outcomes, part)
        return SessionStates(states.keys, users, counters)

    def _fold_displays(self, keys: NDArray[np.uint64], users: NDArray[Any], displays: Displays) -> None:
        for rows, at in _rounds(keys, displays.user_key):
            now = displays.ts_ms[rows]
            self._forget(users, at, now)
            last = users["display_ms"][at]
            fresh = (last == 0) | (now - last >= self._gap_ms)
            users["session_start_ms"][at] = np.where(fresh, now, users["session_start_ms"][at])
            users["session_impressions"][at] = np.where(fresh, 0, users["session_impressions"][at]) + 1
            users["display_ms"][at] = np.maximum(last, now)
            users["seen_ms"][at] = np.maximum(users["seen_ms"][at], now)

    def _fold_user_outcomes(self, keys: NDArray[np.uint64], users: NDArray[Any], outcomes: Outcomes) -> None:
        ads = outcomes.ids[:, self.spec.ad_field]
        for rows, at in _rounds(keys, outcomes.user_key):
            kind, label, now = outcomes.kind[rows], outcomes.label[rows] != 0, outcomes.known_ms[rows]
            self._forget(users, at, now)
            settled = kind == SETTLED
            _remember(users, at[settled], ads[rows[settled]], label[settled])
            corrected = kind == CORRECTION
            _correct(users, at[corrected], ads[rows[corrected]])
            clicked = (settled & label) | corrected
            _count_click(users, at[clicked], outcomes.ts_ms[rows[clicked]])
            users["seen_ms"][at] = np.maximum(users["seen_ms"][at], now)

    def _forget(self, users: NDArray[Any], at: NDArray[np.intp], now: NDArray[np.int64]) -> None:
        """Start anew those who were away for longer than the expiry."""
        away = now - users["seen_ms"][at] > self._own_ttl_ms
        if away.any():
            users[at[away]] = np.zeros((), USER)

    def _fold_counters(self, keys: SessionKeys, counters: NDArray[Any], outcomes: Outcomes, part: slice) -> None:
        """Add rows that span no more than the shortest expiry, so that only their first can find an expired state."""
        ids = outcomes.ids[part][:, self._columns]
        row, counter = np.nonzero(ids)
        at = np.searchsorted(keys.counters, ids[row, counter])
        now = outcomes.known_ms[part][row]
        old_ms = counters["ts_ms"].copy()
        first_ms = old_ms.copy()
        first_ms[at[::-1]] = now[::-1]  # of equal indices the last assignment stays: the first row
        ttl_ms = np.where(keys.owners != 0, self._own_ttl_ms, self._shared_ttl_ms)
        expired = (first_ms - old_ms > ttl_ms) & (old_ms != 0)
        if expired.any():
            counters[expired] = np.zeros((), COUNTER)
        new_ms = counters["ts_ms"]
        np.maximum.at(new_ms, at, now)
        sums = sums_of(counters)
        sums[:, 3:] *= decay(new_ms - old_ms, self._half_life_ms)[:, None]
        steps = _steps(outcomes.kind[part], outcomes.label[part])[row]
        weight = decay(new_ms[at] - now, self._half_life_ms)[:, None]
        added = np.concatenate((steps, steps * weight), axis=1)  # (M, 6)
        place = at[:, None] * added.shape[1] + np.arange(added.shape[1])
        sums += np.bincount(place.ravel(), added.ravel(), sums.size).reshape(sums.shape)


def _steps(kind: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What each row adds to (n, clicks, values), (B, 3)."""
    steps = np.empty((len(kind), 3))
    steps[:, 0] = settled = kind == SETTLED
    steps[:, 1] = (settled & (label != 0)) | (kind == CORRECTION)
    steps[:, 2] = kind == CONVERSION
    return steps


def _remember(users: NDArray[Any], at: NDArray[np.intp], ads: NDArray[np.uint64], clicked: NDArray[np.bool_]) -> None:
    """Shift one settled outcome in, newest first."""
    recent = users["recent_ads"]
    recent[at, 1:] = recent[at, :-1]
    recent[at, 0] = ads
    users["outcomes"][at] = (users["outcomes"][at] << 1) | clicked
    users["outcome_count"][at] = np.minimum(users["outcome_count"][at] + 1, REMEMBERED)


def _correct(users: NDArray[Any], at: NDArray[np.intp], ads: NDArray[np.uint64]) -> None:
    """Turn the newest unclicked outcome of the ad into a click, if it is still remembered."""
    if not len(at):
        return
    bits = np.arange(REMEMBERED)
    real = bits < users["outcome_count"][at, None]
    open_ = ((users["outcomes"][at, None] >> bits) & 1) == 0
    match = (users["recent_ads"][at] == ads[:, None]) & real & open_
    flip = np.where(match.any(axis=1), 1 << match.argmax(axis=1), 0)
    users["outcomes"][at] |= flip.astype(np.uint8)


def _count_click(users: NDArray[Any], at: NDArray[np.intp], shown_ms: NDArray[np.int64]) -> None:
    """Count a click if its display belongs to the session that is on; a click of an earlier one only dates itself."""
    start, newest = users["session_start_ms"][at], users["click_ms"][at]
    before = np.where(newest >= start, users["session_clicks"][at], 0)
    users["session_clicks"][at] = before + (shown_ms >= start)
    users["click_ms"][at] = np.maximum(newest, shown_ms)


def _rounds(
    keys: NDArray[np.uint64], user_key: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows and their places in ``keys``, in rounds in which each user comes at most once."""
    rows = np.flatnonzero(user_key)
    at = np.searchsorted(keys, user_key[rows])
    if len(rows) <= 1:
        if len(rows):
            yield rows, at
        return
    order = np.argsort(at, kind="stable")
    grouped = at[order]
    start = np.flatnonzero(np.concatenate(([True], grouped[1:] != grouped[:-1])))
    size = np.diff(np.append(start, len(grouped)))
    nth = np.arange(len(grouped)) - np.repeat(start, size)
    by_round = order[np.argsort(nth, kind="stable")]
    for chosen in np.split(by_round, np.cumsum(np.bincount(nth))[:-1]):
        yield rows[chosen], at[chosen]


def _spans(times: NDArray[np.int64], longest_ms: int) -> Iterator[slice]:
    """Cut rows, in order, into stretches whose times lie no further apart than ``longest_ms``; nearly always one."""
    if times.max() - times.min() <= longest_ms:
        yield slice(0, len(times))
        return
    start, low, high = 0, int(times[0]), int(times[0])
    for at, time in enumerate(times.tolist()):
        low, high = min(low, time), max(high, time)
        if high - low > longest_ms:
            yield slice(start, at)
            start, low, high = at, time, time
    yield slice(start, len(times))
