"""What a feature spec is made of: fields, counters, their rates, session features, slices of the calibration."""

from __future__ import annotations

from typing import Literal

import msgspec

CounterId = Literal["ctr", "recent_ctr", "count"]
CounterDense = Literal["ctr", "value_rate", "recent_ctr", "recent_value_rate", "log_count", "log_recent_count"]
SessionId = Literal["outcomes", "gap", "session_impressions", "since_click"]
SessionDense = Literal["log_gap", "first_display", "log_session_impressions", "log_session_clicks"]

GROUPS = ("user", "context", "ad", "time")
TIMES = ("hour", "weekday")


class SpecError(ValueError):
    """A feature spec that does not exist or cannot mean anything."""


class Field(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One id column: a raw value of the request, or a cross of other fields.

    source : ``user.x``, ``context.x``, ``ad.x``, or ``time.hour`` and ``time.weekday`` (local, of the request).
    cross : names of earlier fields instead of a source; missing where any of them is.
    edges : buckets a number; bucket k holds edges[k−1] <= value < edges[k].
    embed : False: only a counter's key, logged but not learned.
    """

    name: str
    source: str = ""
    cross: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    embed: bool = True


class Counter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Running sums of outcomes by the id of one field, and what a model reads of them.

    ids : bucketised: ``ctr`` and ``recent_ctr`` (smoothed CTR bucket x count bucket), ``count``.
    dense : ``ctr``, ``recent_ctr``, ``value_rate``, ``recent_value_rate`` as log-odds of the smoothed rates,
        ``log_count`` and ``log_recent_count`` as log(1 + n) / 2.
    """

    field: str
    ids: tuple[CounterId, ...] = ()
    dense: tuple[CounterDense, ...] = ()


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How counters become numbers: (hits + weight x prior) / (n + weight), decay, buckets and expiry."""

    ctr_prior: float = 0.5  # of clicks per impression; neutral does as well as the data's own where clicks are common
    value_prior: float = 0.5  # of conversions per impression
    prior_weight: float = 5.0  # of dense inputs
    bucket_prior_weight: float = 2.0  # of bucketised CTRs: less, because the count rides in the same bucket
    half_life_s: float = 86_400.0
    own_ttl_s: float = 604_800.0  # a user's own state, unseen for so long, is that of a new user
    shared_ttl_s: float = 2_592_000.0  # ads, authors, tabs ...
    ctr_edges: tuple[float, ...] = tuple(0.5 * step for step in range(-8, 9))  # log-odds
    count_edges: tuple[float, ...] = (1, 2, 4, 8, 16, 32)


class Session(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is read of the user's own state.

    ids : ``outcomes`` (the last ``last_outcomes`` in order), ``gap`` (since the last display), ``session_impressions``,
        ``since_click``, bucketised. dense : ``log_gap`` = log(1 + gap in s) / 4, ``first_display`` (1: no display
        before), ``log_session_impressions`` and ``log_session_clicks`` = log(1 + n) / 2.
    recent_ads : columns ``session.recent_ad_1``, ``_2`` ... with the ids of the last ads that were displayed, newest
        first, as they stand in the column of the spec's ad; 0 where there are fewer. A history for learners that
        attend to it; no column of its own is learned for them.
    """

    gap_s: float = 1800.0  # a longer silence starts a new session
    last_outcomes: int = 3
    recent_ads: int = 0
    ids: tuple[SessionId, ...] = ()
    dense: tuple[SessionDense, ...] = ()
    gap_edges_s: tuple[float, ...] = (
        5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 57600, 86400, 172800
    )  # fmt: skip
    count_edges: tuple[float, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512)


class CalibrationSlice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traffic that gets a correction and figures of its own: the values of an id column, or buckets of a dense input.

    edges : of a dense input: bucket k holds edges[k−1] <= value < edges[k]. None: an id column of few values.
    """

    column: str
    edges: tuple[float, ...] = ()


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the calibration map tells apart, the most telling slice first; the next ones divide it."""

    slices: tuple[CalibrationSlice, ...] = ()
