"""The encoder done slowly: one row, one column, one number at a time."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from learners.features.encode import Request
from learners.features.hashing import hash_text, salt_of
from learners.features.spec import FeatureSpec
from learners.features.spec_parts import Counter


def raw_id(spec: FeatureSpec, name: str, request: Request, ad: Mapping[str, Any]) -> int:
    """The id of a raw field of one row."""
    field = spec.by_name[name]
    if field.cross:
        return cross_id(name, [raw_id(spec, part, request, ad) for part in spec.parts(name)])
    local = datetime.fromtimestamp(request.ts_ms / 1000, UTC) + timedelta(seconds=spec.utc_offset_s)
    time = {"hour": local.hour, "weekday": local.weekday()}
    group, key = field.source.split(".")
    value = {"user": request.user, "context": request.context, "ad": ad, "time": time}[group].get(key)
    if value is None or value == "" or value != value:
        return 0
    if field.edges:
        return hash_text(salt_of(name), str(bisect_right(field.edges, float(value))))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hash_text(salt_of(name), str(int(value) if isinstance(value, bool) else value))


def cross_id(name: str, parts: list[int]) -> int:
    """A cross of parts by plain integers."""
    if 0 in parts:
        return 0
    mixed = salt_of(name)
    for part in parts:
        mixed ^= part
        for _ in range(2):
            mixed = mixed * 0xFF51AFD7ED558CCD % 2**64
            mixed ^= mixed >> 32
    return mixed or 1


def counter_columns(spec: FeatureSpec, counter: Counter, state: Any, now_ms: int) -> tuple[list[int], list[float]]:
    """Ids and dense inputs of one counter's state."""
    rates = spec.rates
    ttl_s = rates.own_ttl_s if spec.own(counter) else rates.shared_ttl_s
    age_ms = now_ms - int(state["ts_ms"])
    names = ("n", "clicks", "values")
    sums = {name: clean(float(state[name])) for name in (*names, *(f"recent_{name}" for name in names))}
    for name in sums:
        if age_ms > ttl_s * 1000:
            sums[name] = 0.0
        elif name.startswith("recent_"):
            sums[name] *= float(np.exp2(max(age_ms, 0) / -(rates.half_life_s * 1000)))

    def odds(kind: str, hits_name: str, prior: float, weight: float) -> float:
        n = sums[kind + "n"]
        hits = min(sums[kind + hits_name], n)
        return (hits + weight * prior) / (n - hits + weight * (1 - prior))

    def code(kind: str) -> int:
        rate = odds(kind, "clicks", rates.ctr_prior, rates.bucket_prior_weight)
        bucket = bisect_left([float(np.exp(edge)) for edge in rates.ctr_edges], rate)
        return bucket * (len(rates.count_edges) + 1) + bisect_right(rates.count_edges, sums[kind + "n"])

    codes = {"ctr": code(""), "recent_ctr": code("recent_"), "count": bisect_right(rates.count_edges, sums["n"])}
    dense = {
        "ctr": math.log(odds("", "clicks", rates.ctr_prior, rates.prior_weight)),
        "recent_ctr": math.log(odds("recent_", "clicks", rates.ctr_prior, rates.prior_weight)),
        "value_rate": math.log(odds("", "values", rates.value_prior, rates.prior_weight)),
        "recent_value_rate": math.log(odds("recent_", "values", rates.value_prior, rates.prior_weight)),
        "log_count": math.log1p(sums["n"]) / 2,
        "log_recent_count": math.log1p(sums["recent_n"]) / 2,
    }
    ids = [hash_text(salt_of(f"{counter.field}.{kind}"), str(codes[kind])) for kind in counter.ids]
    return ids, [dense[kind] for kind in counter.dense]


def session_columns(spec: FeatureSpec, user: Any, now_ms: int) -> tuple[list[int], list[float]]:
    """Ids and dense inputs of one user's state."""
    session = spec.session
    known = user["seen_ms"] > 0 and now_ms - user["seen_ms"] <= spec.rates.own_ttl_s * 1000
    seen = known and user["display_ms"] > 0
    gap_s = max(now_ms - int(user["display_ms"]), 0) / 1000
    here = seen and gap_s < session.gap_s
    impressions = int(user["session_impressions"]) if here else 0
    clicks = int(user["session_clicks"]) if here and user["click_ms"] >= user["session_start_ms"] else 0
    count = min(int(user["outcome_count"]), session.last_outcomes) if known else 0
    outcomes = "1" + format(int(user["outcomes"]), "08b")[8 - count :]

    def gap_code(since_s: float, exists: bool) -> int:
        return 1 + bisect_left(session.gap_edges_s, since_s) if exists else 0

    codes = {
        "outcomes": int(outcomes, 2),
        "gap": gap_code(gap_s, seen),
        "since_click": gap_code(max(now_ms - int(user["click_ms"]), 0) / 1000, known and user["click_ms"] > 0),
        "session_impressions": bisect_right(session.count_edges, impressions),
    }
    dense = {
        "log_gap": math.log1p(gap_s) / 4 if seen else 0.0,
        "first_display": float(not seen),
        "log_session_impressions": math.log1p(impressions) / 2,
        "log_session_clicks": math.log1p(clicks) / 2,
    }
    ids = [hash_text(salt_of(f"session.{kind}"), str(codes[kind])) for kind in session.ids]
    ads = int(user["outcome_count"]) if known else 0
    ids += [int(user["recent_ads"][at]) if at < ads else 0 for at in range(session.recent_ads)]
    return ids, [dense[kind] for kind in session.dense]


def clean(value: float) -> float:
    """A sum as it can be: not NaN, not negative, not infinite."""
    return 0.0 if math.isnan(value) else min(max(value, 0.0), 1e15)
