"""A small learner and what it publishes: enough of the stream's other side to drive serving with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.encode import Encoder, Request
from learners.features.rows import Rows
from learners.features.session_state import COUNTER, USER, SessionView
from learners.features.shape import ModelShape
from learners.features.spec import FeatureSpec
from learners.nn.heads import Head
from learners.snapshots.snapshot import Snapshot, write_snapshot
from stream.records.deltas import to_parts
from stream.records.wire import DeltaPart
from tests.learners.small_spec import SMALL

CONFIG = DeepFMConfig(dim=4, hidden=(8,), init_scale=0.3, vector_rate=0.1, dense_rate=0.02)
TWO_HEADS = replace(CONFIG, heads=(Head("click"), Head("conversion", given="click")))
FIRST_VERSION = 10
NOW_MS = 1_700_000_000_000


def request(user: int = 1, ads: Sequence[int] = (1,), ts_ms: int = NOW_MS, request_id: int = 7) -> Request:
    """A request of the small spec."""
    return Request(
        request_id=request_id,
        ts_ms=ts_ms,
        user={"user_id": user, "age": 20 + user % 40},
        context={"tab": user % 3},
        ads=[{"ad_id": ad, "author_id": ad % 5, "duration_ms": ad} for ad in ads],
    )


def wire(request: Request, **more: Any) -> dict[str, Any]:
    """The JSON of a request."""
    return {
        "request_id": str(request.request_id),
        "ts_ms": request.ts_ms,
        "user": dict(request.user),
        "context": dict(request.context),
        "ads": [dict(ad) for ad in request.ads],
        **more,
    }


def no_sessions(encoder: Encoder, requests: Sequence[Request]) -> SessionView:
    """The states of users and ads never seen."""
    spec, ads = encoder.spec, sum(len(r.ads) for r in requests)
    return SessionView(
        np.zeros(len(requests), USER),
        np.zeros((len(requests), len(spec.request_counters)), COUNTER),
        np.zeros((ads, len(spec.ad_counters)), COUNTER),
    )


def rows_of(requests: Sequence[Request], spec: FeatureSpec = SMALL) -> Rows:
    """What the model reads for requests of users never seen."""
    encoder = Encoder(spec)
    return encoder.encode(encoder.ids(requests), no_sessions(encoder, requests)).rows()


class Trainer:
    """A learner that learns arbitrary labels and publishes one delta a call; deterministic in its seed."""

    def __init__(self, seed: int = 0, config: DeepFMConfig = CONFIG) -> None:
        self.model = DeepFM(config, ModelShape.of(SMALL))
        self.version = FIRST_VERSION
        self.watermark_ms = NOW_MS
        self._random = np.random.default_rng(seed)

    def snapshot(self, root: Path) -> str:
        """Write a snapshot of the version as it is."""
        written = write_snapshot(
            str(root),
            Snapshot(
                version=self.version,
                created_from="stream",
                watermark_ms=self.watermark_ms,
                newest_event_ms=self.watermark_ms,
                shape=self.model.shape,
                config=self.model.config,
                state=self.model.state(),
            ),
        )
        return written.url

    def step(self, clicks_produced_ms: Sequence[int] = (), max_part_bytes: int = 1 << 20) -> list[DeltaPart]:
        """Learn a batch and return the parts of its delta."""
        users = self._random.integers(1, 30, 32).tolist()
        batch = [request(user, [int(self._random.integers(1, 50))]) for user in users]
        self.model.learn_many(rows_of(batch), self._random.random(len(batch)) < 0.5)
        parent, self.version = self.version, self.version + 1
        self.watermark_ms += 1000
        delta = self.model.changes(
            version=self.version,
            parent=parent,
            watermark_ms=self.watermark_ms,
            newest_event_ms=self.watermark_ms,
            clicks_produced_ms=clicks_produced_ms,
        )
        return to_parts(delta, max_part_bytes)


def encoded(part: msgspec.Struct) -> bytes:
    """A record as it lies on its topic."""
    return msgspec.msgpack.encode(part)
