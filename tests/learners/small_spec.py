"""A feature spec that has one of everything, small enough to compute by hand."""

from __future__ import annotations

from learners.features.spec import FeatureSpec
from learners.features.spec_parts import Counter, Field, Rates, Session

SMALL = FeatureSpec(
    name="small",
    user="user",
    ad="ad",
    utc_offset_s=3600,
    fields=(
        Field(name="user", source="user.user_id"),
        Field(name="age", source="user.age", edges=(18, 30, 45.5)),
        Field(name="tab", source="context.tab"),
        Field(name="hour", source="time.hour"),
        Field(name="weekday", source="time.weekday"),
        Field(name="user_tab", cross=("user", "tab"), embed=False),
        Field(name="ad", source="ad.ad_id"),
        Field(name="author", source="ad.author_id"),
        Field(name="duration", source="ad.duration_ms", edges=(-5, 0, 10)),
        Field(name="user_author", cross=("user", "author"), embed=False),
        Field(name="user_tab_author", cross=("user_tab", "author")),
        Field(name="duration_tab", cross=("duration", "tab")),
    ),
    counters=(
        Counter(field="user", ids=("ctr", "count"), dense=("ctr", "log_count")),
        Counter(field="ad", ids=("recent_ctr",), dense=("value_rate", "recent_value_rate", "recent_ctr")),
        Counter(field="tab", dense=("log_recent_count",)),
        Counter(field="user_author", ids=("ctr",), dense=("ctr", "log_count")),
        Counter(field="user_tab", ids=("ctr",)),
    ),
    rates=Rates(ctr_prior=0.2, value_prior=0.05, half_life_s=1800, own_ttl_s=3600, shared_ttl_s=7200),
    session=Session(
        gap_s=600,
        recent_ads=2,
        ids=("gap", "outcomes", "since_click", "session_impressions"),
        dense=("first_display", "log_gap", "log_session_clicks", "log_session_impressions"),
    ),
)
