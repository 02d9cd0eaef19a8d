"""A small advertising marketplace with a known truth: users, ads that come and go, interests that move by the hour.

Everything follows from the seed, and a user's reaction to an ad is drawn from a hash of (seed, request, ad), so it
does not depend on what else was shown, in which order, or by which policy.

The true click probability is ``sigmoid(intercept + interest + ad quality + user habit + placement + hour)``:

* interest: one number per user segment and ad category, each a stationary AR(1) walk over hours, plus a part of the
  user's own. This is what makes freshness matter;
* ad quality: drawn at launch, wearing out with the ad's age (ads live 8 to 48 hours and new ones launch all the time);
* habit: a few users click a lot, most rarely.

Conversions follow clicks with the delays of a real click-to-install log: 29 % within a minute, 54 % within five,
73 % within an hour, 93 % within six.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import xxhash
from numpy.typing import NDArray

from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD
from learners.features.encode import Request
from replay.market_laws import INSTALLS, MEDIAN_CLICK_DELAY_S, PLACEMENT_LOGIT, PLACEMENTS, click_delay_s
from replay.scenario import DAY_MS, Days, Display, calendar

HOUR_MS = 3_600_000
EPOCH = date(2026, 1, 5)  # a Monday; simulated time only
AGE_GROUPS = ("13-17", "18-24", "25-34", "35-44", "45-54", "55-64", "65+")
DEVICES = ("android", "ios", "desktop", "tablet")
FORMATS = ("image", "video", "carousel")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketplaceConfig:
    """Size and temper of the simulated marketplace."""

    seed: int = 7
    day_count: int = 4
    requests_per_day: int = 6_000
    users: int = 4_000
    categories: int = 24
    advertisers: int = 80
    live_ads: int = 240
    candidates: int = 12
    top_k: int = 3
    intercept: float = -2.6  # about 10 % clicks among random ads
    interest_scale: float = 1.1
    interest_half_life_h: float = 10.0  # of the AR(1) walk: how long yesterday's interests stay true
    median_click_delay_s: float = MEDIAN_CLICK_DELAY_S
    conversion_rate: float = 0.12

    def __post_init__(self) -> None:
        for name in ("day_count", "requests_per_day", "users", "categories", "advertisers", "live_ads", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1: the marketplace would be empty.")
        if not self.top_k <= self.candidates <= self.live_ads:
            raise ValueError(
                f"top_k={self.top_k} <= candidates={self.candidates} <= live_ads={self.live_ads} must hold: a request "
                "picks its candidates from the live ads and shows some of them."
            )


class Marketplace:
    """The simulator as a scenario of ``day_count`` days from ``EPOCH`` on."""

    name = "marketplace"
    spec_name = "marketplace"
    utc_offset_h = 0.0
    click_window_s = 300.0
    head_names: tuple[str, ...] = (CLICK_HEAD, CONVERSION_HEAD)

    def __init__(self, config: MarketplaceConfig | None = None) -> None:
        self.config = config = config or MarketplaceConfig()
        self.top_k: int | None = config.top_k
        self._start_ms = round(datetime(EPOCH.year, EPOCH.month, EPOCH.day, tzinfo=UTC).timestamp() * 1000)
        rng = np.random.default_rng(config.seed)
        self._users = _Users(rng, config)
        self._ads = _Ads(rng, config)
        self._interest = _interests(rng, config)

    def days(self) -> Days:
        """The simulated days."""
        return calendar(self._start_ms, self._start_ms + self.config.day_count * DAY_MS - 1, self.utc_offset_h)

    def count(self, start_ms: int, end_ms: int) -> int:
        """Requests in a span of whole days."""
        return (end_ms - start_ms) * self.config.requests_per_day // DAY_MS

    def requests(self, start_ms: int, end_ms: int) -> Iterator[Request]:
        """Requests at random times with a daily rhythm, each with ``candidates`` live ads."""
        for day in range(self.config.day_count):
            midnight = self._start_ms + day * DAY_MS
            if midnight + DAY_MS > start_ms and midnight < end_ms:
                yield from (r for r in self._day(day, midnight) if start_ms <= r.ts_ms < end_ms)

    def displays(self, request: Request, order: Sequence[int]) -> list[Display]:
        """The user looks at the ``top_k`` first ads and reacts to each by the true probabilities."""
        p = self.click_probability(request)
        shown: list[Display] = []
        for position, index in enumerate(order[: self.top_k]):
            u_click, u_delay, u_convert, u_wait = self._draws(request, index)
            click_ms = conversion_ms = None
            if u_click < p[index]:
                delay_s = float(click_delay_s(u_delay, self.config.median_click_delay_s))
                click_ms = request.ts_ms + max(round(1000 * delay_s), 200)
                if u_convert < self.config.conversion_rate:
                    wait_s = float(INSTALLS.quantile_s(u_wait))
                    conversion_ms = click_ms + round(1000 * wait_s)
            value = 0.0 if conversion_ms is None else round(5 + 40 * u_wait, 2)
            shown.append(Display(index, position, request.ts_ms, click_ms, conversion_ms, value))
        return shown

    def click_probability(self, request: Request) -> NDArray[np.float64]:
        """The truth for every candidate of the request, (ads,) float64."""
        user = int(request.user["user_id"])
        ads = np.array([int(ad["ad_id"]) for ad in request.ads])
        hour = (request.ts_ms - self._start_ms) // HOUR_MS
        category = self._ads.category[ads]
        age_h = (request.ts_ms - self._start_ms) / HOUR_MS - self._ads.launch_h[ads]
        logit = (
            self.config.intercept
            + self._interest[hour, self._users.segment[user], category]
            + self._users.taste[user, category]
            + self._users.habit[user]
            + self._ads.quality[ads] * np.exp2(-age_h / 24.0)
            + PLACEMENT_LOGIT[PLACEMENTS.index(request.context["placement"])]
            + 0.25 * np.sin(2 * np.pi * (request.context["hour"] - 15) / 24)
        )
        return np.asarray(1 / (1 + np.exp(-logit)))

    def _day(self, day: int, midnight_ms: int) -> Iterator[Request]:
        config = self.config
        rng = np.random.default_rng([config.seed, 1, day])
        hours = np.arange(24)
        rhythm = 1.0 + 0.8 * np.sin(2 * np.pi * (hours - 9) / 24)
        hour = rng.choice(24, config.requests_per_day, p=rhythm / rhythm.sum())
        times = np.sort(midnight_ms + hour * HOUR_MS + rng.integers(0, HOUR_MS, config.requests_per_day))
        users = rng.choice(config.users, config.requests_per_day, p=self._users.activity)
        placements = rng.integers(0, len(PLACEMENTS), config.requests_per_day)
        for i, (time_ms, user, placement) in enumerate(zip(times.tolist(), users.tolist(), placements, strict=True)):
            live = self._ads.live_at((time_ms - self._start_ms) / HOUR_MS)
            chosen = rng.choice(live, config.candidates, replace=False)
            yield Request(
                request_id=day * config.requests_per_day + i + 1,
                ts_ms=time_ms,
                user=self._users.attributes(user),
                context={"placement": PLACEMENTS[placement], "hour": (time_ms - self._start_ms) // HOUR_MS % 24},
                ads=[self._ads.attributes(ad) for ad in chosen.tolist()],
            )

    def _draws(self, request: Request, index: int) -> tuple[float, float, float, float]:
        """Four uniforms that depend on the seed, the request and the ad alone."""
        ad_id = request.ads[index]["ad_id"]
        digest = xxhash.xxh3_128_intdigest(f"{request.request_id}:{ad_id}".encode(), seed=self.config.seed)
        a, b, c, d = ((digest >> shift & 0xFFFFFFFF) / 2**32 for shift in (0, 32, 64, 96))
        return a, b, c, d


class _Users:
    def __init__(self, rng: np.random.Generator, config: MarketplaceConfig) -> None:
        n = config.users
        self.age = rng.integers(0, len(AGE_GROUPS), n)
        self.gender = rng.integers(0, 2, n)
        self.region = rng.integers(0, 12, n)
        self.device = rng.integers(0, len(DEVICES), n)
        self.segment = self.age * 2 + self.gender
        self.habit = rng.normal(0, 0.6, n)
        self.taste = rng.normal(0, 0.4, (n, config.categories))
        weight = 1.0 / np.arange(1, n + 1) ** 0.7  # a few users come often, most rarely
        self.activity = rng.permutation(weight / weight.sum())

    def attributes(self, user: int) -> dict[str, str | int]:
        return {
            "user_id": user,
            "age_group": AGE_GROUPS[self.age[user]],
            "gender": "fm"[self.gender[user]],
            "region": int(self.region[user]),
            "device": DEVICES[self.device[user]],
        }


class _Ads:
    """Ads launch at random hours; enough of them that about ``live_ads`` are live at any time."""

    def __init__(self, rng: np.random.Generator, config: MarketplaceConfig) -> None:
        hours = config.day_count * 24
        mean_life_h = 28.0
        n = round(config.live_ads * (hours + mean_life_h * 2) / mean_life_h)
        self.launch_h = np.sort(rng.uniform(-2 * mean_life_h, hours, n))
        self.end_h = self.launch_h + rng.uniform(8.0, 48.0, n)
        self.advertiser = rng.integers(0, config.advertisers, n)
        self.campaign = self.advertiser * 3 + rng.integers(0, 3, n)
        favourite = rng.integers(0, config.categories, config.advertisers)
        self.category = np.where(rng.random(n) < 0.7, favourite[self.advertiser], rng.integers(0, config.categories, n))
        self.format = rng.integers(0, len(FORMATS), n)
        self.price = rng.integers(0, 10, n)
        self.quality = rng.normal(0, 0.9, n)
        self._config = config
        self._live: tuple[float, NDArray[np.int64]] = (-1.0, np.empty(0, np.int64))

    def live_at(self, hour: float) -> NDArray[np.int64]:
        """Ads that are live at the start of this quarter of an hour; never fewer than the candidates asked for."""
        quarter = np.floor(hour * 4) / 4
        if self._live[0] != quarter:
            live = np.flatnonzero((self.launch_h <= quarter) & (self.end_h > quarter))
            if len(live) < self._config.candidates:
                launched = int(np.searchsorted(self.launch_h, quarter, side="right"))
                live = np.arange(max(launched - self._config.candidates, 0), max(launched, self._config.candidates))
            self._live = (quarter, live)
        return self._live[1]

    def attributes(self, ad: int) -> dict[str, str | int]:
        return {
            "ad_id": ad,
            "campaign_id": int(self.campaign[ad]),
            "advertiser_id": int(self.advertiser[ad]),
            "category": int(self.category[ad]),
            "creative_format": FORMATS[self.format[ad]],
            "price_bucket": int(self.price[ad]),
        }


def _interests(rng: np.random.Generator, config: MarketplaceConfig) -> NDArray[np.float64]:
    """(hours, segments, categories): a stationary AR(1) walk with the configured half-life."""
    hours, shape = config.day_count * 24, (len(AGE_GROUPS) * 2, config.categories)
    keep = 0.5 ** (1.0 / config.interest_half_life_h)
    interest = np.empty((hours, *shape))
    interest[0] = rng.normal(0, config.interest_scale, shape)
    for hour in range(1, hours):
        step = rng.normal(0, config.interest_scale, shape)
        interest[hour] = keep * interest[hour - 1] + np.sqrt(1 - keep**2) * step
    return interest
