"""Bucket ids and dense inputs from session state, vectorised over rows x counters.

Per counter, with n impressions and h hits, prior p and prior weight w: the smoothed rate's log-odds are
``log((h + w p) / (n − h + w (1 − p)))``, for clicks and conversions, total and decayed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.features.hashing import bucket_ids
from learners.features.session_state import REMEMBERED, SessionView, decay, sums_of
from learners.features.spec import FeatureSpec
from learners.features.spec_parts import Counter, Session

# The order in which `_CounterInputs` lays the quantities of one counter side by side.
_DENSE = ("ctr", "value_rate", "recent_ctr", "recent_value_rate", "log_count", "log_recent_count")
_IDS = ("ctr", "recent_ctr", "count")
_MAX_SUM = 1e15  # so that a damaged state cannot make an infinite input


class Derived(NamedTuple):
    """What session state adds to R requests and B rows, in the spec's order of columns."""

    request_ids: NDArray[np.uint64]  # (R, ·)
    request_dense: NDArray[np.float32]  # (R, ·)
    ad_ids: NDArray[np.uint64]  # (B, ·)
    ad_dense: NDArray[np.float32]  # (B, ·)


class DerivedInputs:
    """The derived columns of one feature spec."""

    def __init__(self, spec: FeatureSpec) -> None:
        self._session = _SessionInputs(spec)
        self._counters = _CounterInputs(spec)
        rates = spec.rates
        self._request = _Columns(spec.request_counters, len(rates.ctr_edges) + 1, len(rates.count_edges) + 1)
        self._ad = _Columns(spec.ad_counters, len(rates.ctr_edges) + 1, len(rates.count_edges) + 1)

    def of(self, ts_ms: NDArray[np.int64], row_request: NDArray[np.intp], view: SessionView) -> Derived:
        """The derived columns at the requests' times; states older than their expiry read as new.

        Parameters
        ----------
        ts_ms : (R,) event time of the requests.
        row_request : (B,) the request of each row.
        view : states of the R requests and B rows.
        """
        session_ids, session_dense = self._session.of(ts_ms, view.users)
        dense, codes = self._counters.of(ts_ms, row_request, view)
        split = view.request_counters.size
        request_ids, request_dense = self._request.of(len(ts_ms), dense[:split], codes[:split])
        ad_ids, ad_dense = self._ad.of(len(row_request), dense[split:], codes[split:])
        return Derived(
            np.concatenate((session_ids, request_ids), axis=1),
            np.concatenate((session_dense, request_dense), axis=1),
            ad_ids,
            ad_dense,
        )


class _Columns:
    """Which of the quantities of C counters are columns, and the ids of their buckets."""

    def __init__(self, counters: tuple[Counter, ...], ctr_buckets: int, count_buckets: int) -> None:
        self._c = len(counters)
        self._dense = np.array(
            [i * len(_DENSE) + _DENSE.index(k) for i, c in enumerate(counters) for k in c.dense], np.intp
        )
        self._ids = np.array([i * len(_IDS) + _IDS.index(k) for i, c in enumerate(counters) for k in c.ids], np.intp)
        names = [f"{counter.field}.{kind}" for counter in counters for kind in counter.ids]
        self._table = _table(names, ctr_buckets * count_buckets)
        self._offset = np.arange(len(names)) * ctr_buckets * count_buckets

    def of(
        self, rows: int, dense: NDArray[np.float32], codes: NDArray[np.intp]
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Ids (rows, ·) and dense inputs (rows, ·) from dense (rows x C, 6) and codes (rows x C, 3)."""
        chosen = codes.reshape(rows, self._c * len(_IDS))[:, self._ids] + self._offset
        return self._table[chosen], dense.reshape(rows, self._c * len(_DENSE))[:, self._dense]


class _CounterInputs:
    """All quantities of all counters of both scopes in one pass over a flat list of M = R x C_r + B x C_a states."""

    def __init__(self, spec: FeatureSpec) -> None:
        rates = spec.rates
        prior = np.array([rates.ctr_prior, rates.value_prior])
        self._half_life_ms = rates.half_life_s * 1000
        self._hits, self._misses = rates.prior_weight * prior, rates.prior_weight * (1 - prior)
        self._bucket_hits = rates.bucket_prior_weight * rates.ctr_prior
        self._bucket_misses = rates.bucket_prior_weight * (1 - rates.ctr_prior)
        self._ctr_edges = np.exp(rates.ctr_edges)  # odds: monotone in log-odds, and no logarithm to take
        self._count_edges = np.asarray(rates.count_edges, np.float64)
        ttl = {True: round(rates.own_ttl_s * 1000), False: round(rates.shared_ttl_s * 1000)}
        self._request_ttl_ms = np.array([ttl[spec.own(counter)] for counter in spec.request_counters], np.int64)
        self._ad_ttl_ms = np.array([ttl[spec.own(counter)] for counter in spec.ad_counters], np.int64)

    def of(
        self, ts_ms: NDArray[np.int64], row_request: NDArray[np.intp], view: SessionView
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Dense quantities (M, 6) in the order of `_DENSE` and bucket codes (M, 3) in that of `_IDS`."""
        sums = self._sums_at(ts_ms, row_request, view)  # (M, 2 total|recent, 3 n|clicks|values)
        n = sums[:, :, :1]
        hits = np.minimum(sums[:, :, 1:], n)  # a click weighs more than its own display, which has decayed
        misses = n - hits
        dense = np.empty((len(sums), len(_DENSE)), np.float32)
        dense[:, :4] = np.log((hits + self._hits) / (misses + self._misses)).reshape(-1, 4)
        dense[:, 4:] = np.log1p(n[:, :, 0]) * 0.5
        odds = (hits[:, :, 0] + self._bucket_hits) / (misses[:, :, 0] + self._bucket_misses)
        count = self._count_edges.searchsorted(n[:, :, 0], side="right")  # (M, 2)
        codes = np.empty((len(sums), len(_IDS)), np.intp)
        codes[:, :2] = self._ctr_edges.searchsorted(odds) * (len(self._count_edges) + 1) + count
        codes[:, 2] = count[:, 0]
        return dense, codes

    def _sums_at(
        self, ts_ms: NDArray[np.int64], row_request: NDArray[np.intp], view: SessionView
    ) -> NDArray[np.float64]:
        """What the sums are worth at the requests' times, (M, 2, 3)."""
        request, ad = view.request_counters, view.ad_counters
        sums = np.concatenate((sums_of(request).reshape(-1, 6), sums_of(ad).reshape(-1, 6)))
        request_age = ts_ms[:, None] - request["ts_ms"]
        ad_age = ts_ms[row_request][:, None] - ad["ts_ms"]
        alive = np.concatenate(((request_age <= self._request_ttl_ms).ravel(), (ad_age <= self._ad_ttl_ms).ravel()))
        age = np.concatenate((request_age.ravel(), ad_age.ravel()))
        np.fmax(sums, 0.0, out=sums)  # also turns NaN into 0
        np.minimum(sums, _MAX_SUM, out=sums)
        sums *= alive[:, None]
        sums[:, 3:] *= decay(age, self._half_life_ms)[:, None]
        return sums.reshape(-1, 2, 3)


class _SessionInputs:
    """Ids and dense inputs of the user's own state."""

    def __init__(self, spec: FeatureSpec) -> None:
        session: Session = spec.session
        self._ttl_ms = round(spec.rates.own_ttl_s * 1000)
        self._gap_ms = round(session.gap_s * 1000)
        self._last = session.last_outcomes
        self._gap_edges_ms = np.asarray(session.gap_edges_s) * 1000
        self._count_edges = np.asarray(session.count_edges, np.float64)
        self._ids, self._dense, self._recent_ads = session.ids, session.dense, session.recent_ads
        gaps, counts = len(session.gap_edges_s) + 2, len(session.count_edges) + 1
        most = max(2 << self._last, gaps, counts)
        self._table = _table([f"session.{kind}" for kind in session.ids], most)
        self._offset = np.arange(len(session.ids)) * most

    def of(self, ts_ms: NDArray[np.int64], users: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Ids (R, ·) and dense inputs (R, ·) of users (R,) USER."""
        known = (users["seen_ms"] > 0) & (ts_ms - users["seen_ms"] <= self._ttl_ms)
        display_ms, click_ms = users["display_ms"], users["click_ms"]
        seen = known & (display_ms > 0)
        gap_ms = np.maximum(ts_ms - display_ms, 0)
        in_session = seen & (gap_ms < self._gap_ms)
        impressions = users["session_impressions"] * in_session
        clicks = users["session_clicks"] * (in_session & (click_ms >= users["session_start_ms"]))
        codes = np.empty((len(users), len(self._ids)), np.intp)
        for at, kind in enumerate(self._ids):
            if kind == "outcomes":
                codes[:, at] = self._outcome_codes(users, known)
            elif kind == "session_impressions":
                codes[:, at] = self._count_edges.searchsorted(impressions, side="right")
            elif kind == "gap":
                codes[:, at] = self._gap_codes(gap_ms, seen)
            else:
                codes[:, at] = self._gap_codes(np.maximum(ts_ms - click_ms, 0), known & (click_ms > 0))
        dense = np.empty((len(users), len(self._dense)), np.float32)
        for at, what in enumerate(self._dense):
            if what == "log_gap":
                dense[:, at] = np.log1p(gap_ms * 1e-3 * seen) * 0.25
            elif what == "first_display":
                dense[:, at] = ~seen
            else:
                dense[:, at] = np.log1p(impressions if what == "log_session_impressions" else clicks) * 0.5
        return np.concatenate((self._table[codes + self._offset], self._history(users, known)), axis=1), dense

    def _history(self, users: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """The last ads, newest first, 0 where there are fewer; of a user seen too long ago none."""
        count = np.minimum(users["outcome_count"], self._recent_ads) * known
        real: NDArray[np.bool_] = np.arange(self._recent_ads) < count[:, None]
        ads: NDArray[np.uint64] = users["recent_ads"][:, : self._recent_ads] * real
        return ads

    def _outcome_codes(self, users: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[np.intp]:
        """The last outcomes as bits behind a leading one that tells how many there are: 1 means none."""
        count = np.minimum(users["outcome_count"], min(self._last, REMEMBERED)) * known
        leading = np.left_shift(1, count.astype(np.intp))
        return np.asarray(leading | (users["outcomes"] & (leading - 1)), np.intp)

    def _gap_codes(self, age_ms: NDArray[np.int64], exists: NDArray[np.bool_]) -> NDArray[np.intp]:
        """0: never; else 1 + the bucket."""
        return np.asarray((self._gap_edges_ms.searchsorted(age_ms) + 1) * exists, np.intp)


def _table(names: list[str], buckets: int) -> NDArray[np.uint64]:
    """The ids of every bucket of every named column, flat: column j's bucket k stands at j x buckets + k."""
    tables = [bucket_ids(name, buckets) for name in names]
    return np.concatenate(tables) if tables else np.zeros(0, np.uint64)
