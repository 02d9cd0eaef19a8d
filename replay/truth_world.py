"""A market whose true click and conversion probabilities are known, drawn by the hundred thousand a second.

The true log-odds of a click are ``level + user + segment x category + placement + campaign + ad + position``: random
effects, and an interaction that a sum of them cannot tell. Those of a conversion of the click are
``level + segment + campaign + placement``. The levels are solved so that displays of the live ads in random order have
the click and conversion rates asked for. The model sees everything but the position, as in serving.

All draws of a second depend on the seed and that second alone: what is served, and how it is learned, changes none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.features.encode import EncodedIds
from learners.features.hashing import bucket_ids, hash_text, salt_of
from learners.features.spec import FeatureSpec, load_spec
from replay.market_laws import INSTALLS, PLACEMENT_LOGIT, PLACEMENTS, DelayLaw, click_delay_s

SPEC_NAME = "truth"
POSITION_LOGIT = np.array([0.15, 0.0, -0.2])  # a fourth and later slots are as the third
_REFERENCE_REQUESTS = 40_000  # whose displays the levels are solved on
_SEGMENTS, _CATEGORIES, _CAMPAIGNS = 14, 24, 40
_ZIPF_EXPONENT = 0.7  # a few users come often, most rarely

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """Rates and temper of the market; the random effects are standard deviations in log-odds.

    live_ads : ads from the start on. launched_ads : those that come later, of campaigns of their own.
    late_share : of the clicks that come ``late_s`` after the display instead of seconds.
    """

    seed: int
    ctr: float
    cvr: float = 0.10
    users: int = 4_000
    live_ads: int = 200
    launched_ads: int = 0
    slots: int = 3
    user_scale: float = 0.4
    ad_scale: float = 0.5
    campaign_scale: float = 0.3
    interaction_scale: float = 0.4
    conversion_scale: float = 0.3
    bid_scale: float = 0.3
    late_share: float = 0.0
    late_s: tuple[float, float] = (1_800.0, 5_400.0)
    conversion_delay: DelayLaw = INSTALLS

    def __post_init__(self) -> None:
        for name in ("ctr", "cvr"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(
                    f"{name}={getattr(self, name)} must lie between 0 and 0.5: no such market is published, and one "
                    "of twice the rate would not exist. Take 0.01."
                )
        if self.live_ads < self.slots or self.launched_ads < 0 or not 0 <= self.late_share <= 1:
            raise ValueError(
                f"live_ads={self.live_ads} must fill slots={self.slots}, launched_ads={self.launched_ads} must not be "
                f"negative and late_share={self.late_share} must be a share: nothing could be shown."
            )


class Requests(NamedTuple):
    """R requests with C candidates each, as indices into the world's arrays."""

    user: Places  # (R,)
    placement: Places  # (R,)
    ads: Places  # (R, C)

    def take(self, slots: Places) -> Requests:
        """The candidates at ``slots`` (R, K) of each request, in that order."""
        return self._replace(ads=np.take_along_axis(self.ads, slots, axis=1))


class Reactions(NamedTuple):
    """What users did with D displays: which were clicked, which of the clicks converted, and when."""

    clicked: Places  # (K,) of the displays, ascending
    click_delay_ms: NDArray[np.int64]  # (K,) after the display
    converted: Places  # (V,) of the displays, ascending, each a clicked one
    conversion_delay_ms: NDArray[np.int64]  # (V,) after the display
    value: NDArray[np.float32]  # (V,)


class _Ads(NamedTuple):
    """A ads: their category, their campaign, what a click on them pays, and what they add to the true log-odds."""

    category: Places  # (A,)
    campaign: Places  # (A,)
    bid: Floats  # (A,)
    logit: Floats  # (A,) of a click
    buying: Floats  # (A,) of a conversion

    @classmethod
    def drawn(cls, rng: np.random.Generator, config: WorldConfig, campaign: Places, campaigns: int) -> _Ads:
        """Ads of the given campaigns."""
        ads = len(campaign)
        clicks, buying = rng.normal(0, 1, (2, campaigns))[:, campaign]
        return cls(
            category=rng.integers(0, _CATEGORIES, ads),
            campaign=np.array(campaign),
            bid=np.exp(rng.normal(0, config.bid_scale, ads)),
            logit=rng.normal(0, config.ad_scale, ads) + config.campaign_scale * clicks,
            buying=config.conversion_scale * buying,
        )


class World:
    """The market of one seed. ``click_shift`` and ``conversion_shift`` are added to all log-odds: set them at will."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.spec: FeatureSpec = load_spec(SPEC_NAME)
        self.click_shift = self.conversion_shift = 0.0
        rng = np.random.default_rng([config.seed, 0])
        self.segment = rng.integers(0, _SEGMENTS, config.users)
        weight = 1.0 / np.arange(1, config.users + 1) ** _ZIPF_EXPONENT
        self._arrivals = np.cumsum(weight / weight.sum())
        self._user = rng.normal(0, config.user_scale, config.users)
        self._interest = rng.normal(0, config.interaction_scale, (_SEGMENTS, _CATEGORIES))
        self._buying_segment = rng.normal(0, config.conversion_scale, _SEGMENTS)
        of_campaign = rng.integers(0, _CAMPAIGNS, config.live_ads)
        live = _Ads.drawn(rng, config, of_campaign, _CAMPAIGNS)
        launched = _Ads.drawn(  # from a generator of their own: they change nothing of the ads that are there
            np.random.default_rng([config.seed, 5]), config, np.arange(config.launched_ads) // 10, _CAMPAIGNS
        )
        self._ads = ads = _Ads(*(np.concatenate(columns) for columns in zip(live, launched, strict=True)))
        ads.campaign[config.live_ads :] += _CAMPAIGNS
        self._ids = {
            "user": bucket_ids("user", config.users),
            "segment": bucket_ids("segment", _SEGMENTS)[self.segment],
            "placement": np.array([_id_of("placement", name) for name in PLACEMENTS], np.uint64),
            "ad": bucket_ids("ad", len(ads.bid)),
            "campaign": bucket_ids("campaign", int(ads.campaign.max()) + 1)[ads.campaign],
            "category": bucket_ids("category", _CATEGORIES)[ads.category],
        }
        self._click_level = self._conversion_level = 0.0
        self._reference = self.requests(np.random.default_rng([config.seed, 1]), _REFERENCE_REQUESTS, config.slots)
        self._click_level = self.shift_to(config.ctr)
        self._conversion_level = _solved(self._clicked_mean_cvr, config.cvr)

    @property
    def bid(self) -> Floats:
        """What a click on each ad pays, (ads,)."""
        return self._ads.bid

    # ------------------------------------------------------------------------------------------------------- the draws

    def rng(self, *at: int) -> np.random.Generator:
        """The generator of a moment."""
        return np.random.default_rng([self.config.seed, 2, *at])

    def requests(
        self, rng: np.random.Generator, count: int, candidates: int, launched: Places | None = None, share: float = 0.0
    ) -> Requests:
        """``count`` requests with ``candidates`` different live ads each, a share of them replaced by launched ones.

        launched : the ads to launch, as indices; None: none.
        """
        live = self.config.live_ads
        user = np.minimum(np.searchsorted(self._arrivals, rng.random(count)), self.config.users - 1)
        placement = rng.integers(0, len(PLACEMENTS), count)
        # Candidate c comes from the c-th stretch of the ads, turned by a random angle: uniform, and all different.
        edges = np.arange(candidates + 1) * live // candidates
        within = edges[:-1] + (rng.random((count, candidates)) * np.diff(edges)).astype(np.intp)
        ads = (within + rng.integers(0, live, (count, 1))) % live
        fresh = rng.random((count, candidates)) < share
        which = rng.random((count, candidates))
        if launched is not None and share > 0:
            ads[fresh] = launched[(which[fresh] * len(launched)).astype(np.intp)]
        return Requests(user, placement, ads)

    def react(self, rng: np.random.Generator, click_p: Floats, conversion_p: Floats) -> Reactions:
        """Draw what users do with D displays of the true probabilities ``click_p`` and ``conversion_p``, (D,)."""
        clicked = np.flatnonzero(rng.random(len(click_p)) < click_p)
        u_delay, u_late, u_wait, u_convert, u_conversion, u_value = rng.random((6, len(clicked)))
        low_s, high_s = self.config.late_s
        late = u_late < self.config.late_share
        delay_s = np.where(late, low_s + u_wait * (high_s - low_s), click_delay_s(u_delay))
        click_delay_ms = np.maximum(delay_s * 1000, 200).astype(np.int64)
        bought = u_convert < conversion_p[clicked]
        wait_ms = (self.config.conversion_delay.quantile_s(u_conversion[bought]) * 1000).astype(np.int64)
        return Reactions(
            clicked=clicked,
            click_delay_ms=click_delay_ms,
            converted=clicked[bought],
            conversion_delay_ms=click_delay_ms[bought] + wait_ms,
            value=(5 + 40 * u_value[bought]).astype(np.float32),
        )

    # ------------------------------------------------------------------------------------------------------- the truth

    def click_probability(self, requests: Requests) -> Floats:
        """The true P(click | display) of ads shown in the order of ``requests.ads``, (R, K)."""
        position = POSITION_LOGIT[np.minimum(np.arange(requests.ads.shape[1]), len(POSITION_LOGIT) - 1)]
        segment = self.segment[requests.user]
        of_request = self._user[requests.user] + PLACEMENT_LOGIT[requests.placement] + self._click_level
        of_ad = self._ads.logit[requests.ads] + self._interest[segment[:, None], self._ads.category[requests.ads]]
        return _sigmoid(of_request[:, None] + of_ad + (position + self.click_shift))

    def conversion_probability(self, requests: Requests) -> Floats:
        """The true P(conversion | click), (R, K)."""
        of_request = self._buying_segment[self.segment[requests.user]] + 0.5 * PLACEMENT_LOGIT[requests.placement]
        of_ad = self._ads.buying[requests.ads] + (self._conversion_level + self.conversion_shift)
        return _sigmoid(of_request[:, None] + of_ad)

    def shift_to(self, ctr: float) -> float:
        """What to add to all log-odds so that the click rate of the live ads in random order becomes ``ctr``."""
        before, self.click_shift = self.click_shift, 0.0
        logit = _logit(self.click_probability(self._reference))
        self.click_shift = before
        return _solved(lambda shift: float(_sigmoid(logit + shift).mean()), ctr)

    def _clicked_mean_cvr(self, level: float) -> float:
        self._conversion_level = level
        click = self.click_probability(self._reference)
        return float((click * self.conversion_probability(self._reference)).sum() / click.sum())

    # ------------------------------------------------------------------------------------------------- as the cores see

    def encoded(self, requests: Requests, first_request_id: int, ts_ms: NDArray[np.int64]) -> EncodedIds:
        """The ids of requests at their times ``ts_ms`` (R,), as `learners.features.encode.Encoder` makes them."""
        count, candidates = requests.ads.shape
        of_request = {
            "user": self._ids["user"][requests.user],
            "segment": self._ids["segment"][requests.user],
            "placement": self._ids["placement"][requests.placement],
        }
        ads = requests.ads.ravel()
        return EncodedIds(
            request_id=np.arange(first_request_id, first_request_id + count, dtype=np.uint64),
            ts_ms=ts_ms,
            user_key=of_request["user"],
            request_ids=np.stack([of_request[name] for name in self.spec.request_fields], axis=1),
            ad_ids=np.stack([self._ids[name][ads] for name in self.spec.ad_fields], axis=1),
            row_request=np.repeat(np.arange(count), candidates),
        )

    def ad_attributes(self, ad: int) -> dict[str, int]:
        """What a request says of one ad."""
        return {"ad_id": ad, "campaign_id": int(self._ads.campaign[ad]), "category": int(self._ads.category[ad])}


def _id_of(field: str, text: str) -> int:
    return hash_text(salt_of(field), text)


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _logit(p: Floats) -> Floats:
    return np.asarray(np.log(p) - np.log1p(-p))


def _solved(mean: Callable[[float], float], wanted: float) -> float:
    """The shift at which an increasing function reaches ``wanted``, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < wanted else (low, middle)
    return (low + high) / 2
