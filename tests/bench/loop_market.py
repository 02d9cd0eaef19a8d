"""A market under the marketplace's feature spec whose true click probabilities are known, and what it sends.

Users, ads and their effects are those of `replay.truth_world`; the fields that it lacks follow from those it has. Rows
are encoded and scored in columns, so that a log of a million displays takes a minute.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import CLICK_HEAD, Terms
from learners.features.encode import EncodedIds, Encoder, Request
from learners.features.hashing import cross_ids, salt_of
from learners.features.shape import ModelShape
from learners.features.spec import load_spec
from learners.nn.heads import Head
from replay.market_laws import PLACEMENTS
from replay.truth_cores import example_rows
from replay.truth_world import Reactions, Requests, World, WorldConfig
from serving.calibrator import HotCalibrator
from serving.freshness import Freshness
from serving.impression_ids import ImpressionIds
from serving.model import HotModel
from serving.ranking import Ranker, Scored
from stream.records.examples import concat
from stream.sessions.fold import SessionFold
from stream.sessions.in_memory import MemorySessionStore

SPEC = load_spec("marketplace")
CLICK_RATE = 0.015
SLOTS = 3
DISPLAYS_PER_S = 1_000.0
STRETCH_S = 0.4  # a hundred rows for each of four partitions
DISPLAY_DELAY_MS = 300  # after serving
_HOUR_MS = 3_600_000
_BATCH_ROWS = 128
_BEFORE = 1 << 20  # stretches before the start have numbers below 0


class Stretch(NamedTuple):
    """What was served within a stretch of time, D displays, and what users did."""

    scored: Scored
    display_ms: NDArray[np.int64]  # (D,)
    reactions: Reactions


class LoopMarket:
    """Asks, shows and clicks stretch after stretch. Each stretch's draws depend on the seed and its number alone."""

    def __init__(self, seed: int = 1, *, users: int = 50_000, ads: int = 2_000) -> None:
        self.world = World(WorldConfig(seed=seed, ctr=CLICK_RATE, live_ads=ads, users=users, slots=SLOTS))
        self.encoder = Encoder(SPEC)
        self.store = MemorySessionStore(SPEC)
        self._fold = SessionFold(SPEC)
        self._ids = self._columns()
        head = Head(CLICK_HEAD, start_p=CLICK_RATE)
        self._model = DeepFM(DeepFMConfig(heads=(head,), seed=seed), ModelShape.of(SPEC))
        hot = HotModel(self._model, spec_hash=SPEC.hash, version=1, watermark_ms=0, freshness=Freshness())
        self._ranker = Ranker(self.encoder, hot, HotCalibrator(plan=SPEC.slice_plan), ImpressionIds(0, seed))

    def attributes(self, user: int) -> dict[str, int]:
        """What a request says of one user."""
        segment = int(self.world.segment[user])
        return {
            "user_id": user, "age_group": segment // 2, "gender": segment % 2, "region": user % 30, "device": user % 3
        }  # fmt: skip

    def ad_attributes(self, ad: int) -> dict[str, int]:
        """What it says of one ad."""
        known = self.world.ad_attributes(ad)
        return {
            **known, "advertiser_id": known["campaign_id"] // 4, "creative_format": ad % 4, "price_bucket": ad % 8
        }  # fmt: skip

    def learn_base(self, until_ms: int, stretches: int) -> DeepFM:
        """Play so many stretches before ``until_ms`` and learn them, every label known; the model that serves on."""
        for number in range(-stretches, 0):
            now = self.stretch(number, until_ms)
            exposed = example_rows(now.scored, EXPOSURE)
            clicked = np.zeros(len(exposed), np.float32)
            clicked[now.reactions.clicked] = 1
            for start in range(0, len(exposed), _BATCH_ROWS):
                rows, events = exposed.take(slice(start, start + _BATCH_ROWS)).rows(), clicked[start:][:_BATCH_ROWS]
                self._model.learn_terms(rows, Terms(np.ones(len(events), np.float32), events))
        return self._model

    def stretch(self, number: int, start_ms: int) -> Stretch:
        """Serve and show stretch ``number`` of those from ``start_ms`` on, and fold it into the sessions."""
        rng = self.world.rng(1 << 22, number + _BEFORE)
        requests = self.world.requests(rng, int(rng.poisson(DISPLAYS_PER_S * STRETCH_S / SLOTS)) or 1, SLOTS)
        begin_ms = start_ms + round(number * STRETCH_S * 1000)
        ts_ms = begin_ms + np.sort(rng.integers(0, round(STRETCH_S * 1000), len(requests.user)))
        ids = self.encoded(requests, 1 + ((number + _BEFORE) << 20), ts_ms)
        scored = self._ranker.score(ids, self.store.read(self.encoder, ids))
        true = self.world.click_probability(requests).ravel()
        reactions = self.world.react(rng, true, self.world.conversion_probability(requests).ravel())
        exposed = example_rows(scored, EXPOSURE)
        clicks = exposed.take(reactions.clicked)
        clicks = clicks.with_event(CLICK, known_ms=clicks.ts_ms + reactions.click_delay_ms)
        self.store.step(self._fold, concat((exposed, clicks)))
        return Stretch(scored, np.repeat(ts_ms, SLOTS) + DISPLAY_DELAY_MS, reactions)

    def encoded(self, requests: Requests, first_request_id: int, ts_ms: NDArray[np.int64]) -> EncodedIds:
        """The ids of requests at their times, bit for bit what `Encoder.ids` makes of them one by one."""
        ads, count = requests.ads.ravel(), len(requests.user)
        row_request = np.repeat(np.arange(count), requests.ads.shape[1])
        found = {name: column[requests.user] for name, column in self._ids["user"].items()}
        found["placement"] = self._ids["placement"]["placement"][requests.placement]
        found["hour"] = self._ids["hour"]["hour"][ts_ms // _HOUR_MS % 24]
        rows = {name: column[ads] for name, column in self._ids["ad"].items()}
        for field in SPEC.fields:
            if field.cross:
                whole = not SPEC.of_ad(field.name)
                parts = [found[part] if whole else rows.get(part, found[part][row_request] if part in found else 0)
                         for part in SPEC.parts(field.name)]  # fmt: skip
                (found if whole else rows)[field.name] = _crossed(field.name, parts)
        return EncodedIds(
            request_id=np.arange(first_request_id, first_request_id + count, dtype=np.uint64),
            ts_ms=ts_ms,
            user_key=found["user"],
            request_ids=_stacked(found, SPEC.request_fields, count),
            ad_ids=_stacked(rows, SPEC.ad_fields, len(ads)),
            row_request=row_request,
        )

    def _columns(self) -> dict[str, dict[str, NDArray[np.uint64]]]:
        """The id of every raw value, by what has it, in the order of the world's indices."""
        users = [Request(1, 0, self.attributes(user), {}, []) for user in range(self.world.config.users)]
        placements = [Request(1, 0, {}, {"placement": name}, []) for name in PLACEMENTS]
        hours = [Request(1, hour * _HOUR_MS, {}, {}, []) for hour in range(24)]
        ads = Request(1, 0, {}, {}, [self.ad_attributes(ad) for ad in range(self.world.config.live_ads)])
        names = [field.name for field in SPEC.raw_request_fields if not field.cross]
        by_request = {
            group: self.encoder.ids(requests).request_ids
            for group, requests in (("user", users), ("placement", placements), ("hour", hours))
        }
        found = {
            group: {name: np.ascontiguousarray(ids[:, SPEC.field_index(name)]) for name in names}
            for group, ids in by_request.items()
        }
        ad_ids, offset = self.encoder.ids([ads]).ad_ids, len(SPEC.request_fields)
        found["ad"] = {
            field.name: np.ascontiguousarray(ad_ids[:, SPEC.field_index(field.name) - offset])
            for field in SPEC.raw_ad_fields
            if not field.cross
        }
        return found


def _crossed(name: str, parts: list[Any]) -> NDArray[np.uint64]:
    every = np.arange(1)
    return cross_ids(np.array([salt_of(name)], np.uint64), [(every, part[:, None]) for part in parts])[:, 0]


def _stacked(columns: dict[str, NDArray[np.uint64]], names: tuple[str, ...], rows: int) -> NDArray[np.uint64]:
    none = np.zeros(rows, np.uint64)
    return np.stack([columns.get(name, none) for name in names], axis=1)
