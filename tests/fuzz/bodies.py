"""Bodies of calls to serving: parsed, encoded, scored, answered and logged, as a server does."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from functools import cache, partial
from random import Random

import msgspec
import numpy as np

from learners.deepfm.model import DeepFM
from learners.features.encode import EncodedIds, Encoder
from learners.features.session_state import COUNTER, USER, SessionView
from learners.features.shape import ModelShape
from serving.admission import Turn
from serving.bodies import MAX_BODY_BYTES, inflated
from serving.calibrator import HotCalibrator
from serving.freshness import Freshness
from serving.impression_ids import ImpressionIds
from serving.messages import Limits, RequestParser
from serving.metrics import ServingMetrics
from serving.model import HotModel
from serving.ranking import Ranker
from serving.refusals import REASONS, RefusedError
from serving.service import ScoringService
from stream.records.served import decode_served
from tests.fuzz.mutate import json_changed
from tests.fuzz.target import TAKEN, Target, promised, rejected
from tests.stream.pipeline import SMALL, SPEC, START_MS


class _NoSessions:
    """Nobody was seen before."""

    failing = False

    async def view(self, ids: EncodedIds) -> SessionView:
        """Empty states."""
        return SessionView(
            np.zeros(len(ids.user_key), USER),
            np.zeros((len(ids.user_key), len(SPEC.request_counters)), COUNTER),
            np.zeros((len(ids.ad_ids), len(SPEC.ad_counters)), COUNTER),
        )


class _Log:
    """Keeps what is logged as served."""

    partitions = 4
    sends_out_of_order = False

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes]] = []

    def write(self, partition: int, record: bytes) -> bool:
        """Keep it."""
        self.records.append((partition, record))
        return True


@cache
def _loop() -> asyncio.Runner:
    return asyncio.Runner()


@cache
def _service(wall: bool) -> tuple[ScoringService, _Log]:
    hot = HotModel(
        DeepFM(SMALL, ModelShape.of(SPEC)), spec_hash=SPEC.hash, version=4, watermark_ms=START_MS, freshness=Freshness()
    )
    log, ids = _Log(), ImpressionIds(START_MS, 3, 5)
    ranker = Ranker(Encoder(SPEC), hot, HotCalibrator(plan=SPEC.slice_plan), ids)
    parser = RequestParser(Limits(), (lambda: START_MS) if wall else None, lambda: int(ids.take(1)[0]))
    return ScoringService(parser, ranker, _NoSessions(), log, ServingMetrics(), lambda: START_MS, Turn()), log  # type: ignore[arg-type]


def _run(path: str, value: bytes) -> str:
    """The first byte says whether time is the wall clock's."""
    service, log = _service(value[:1] == b"w")
    log.records.clear()
    call = service.rank if path == "rank" else service.score
    try:
        answer = json.loads(_loop().run(call(value[1:])))
    except RefusedError as error:
        promised(not log.records, "what was refused was logged as served")
        return rejected(error.refusal.label, str(error), REASONS)
    rows = answer["ranked"] if path == "rank" else answer["results"]
    p = [row["p"] for row in rows] if path == "rank" else [p for row in rows for p in row["p"]]
    promised(all(0 <= one <= 1 for one in p), "an answer that is no probability")
    promised(service.ranker.model.unsound is None, "a caller had the model distrusted")
    logged = [decode_served(record, SPEC) for _, record in log.records]
    promised(sum(map(len, logged)) == len(p) and not any(one.rejected for one in logged), "other rows were logged")
    promised(
        all(np.isfinite(one.logit).all() and np.isfinite(one.ad_dense).all() for one in logged), "no numbers logged"
    )
    return TAKEN


@cache
def _ranks() -> list[bytes]:
    user = {"user_id": 17, "age_group": "25-34", "gender": "f", "region": 3, "device": "ios"}
    ads = [{"ad_id": at, "campaign_id": at % 3, "category": "shoes", "price_bucket": 2, "bid": 0.5} for at in range(3)]
    full = {"user": user, "context": {"placement": 1}, "ads": ads, "request_id": "12", "ts_ms": START_MS, "top_k": 2}
    return [kind + msgspec.json.encode(one) for kind in (b"w", b"l") for one in (full, full | {"request_id": 9})]


@cache
def _scores() -> list[bytes]:
    request = json.loads(_ranks()[0][1:])
    return [
        b"w" + msgspec.json.encode({"requests": [request, request | {"user": {}}]}),
        b"l" + msgspec.json.encode({"requests": [request], "watermark_ms": START_MS}),
        b"l" + msgspec.json.encode({"requests": []}),
    ]


def _body_changed(value: bytes, source: Random) -> bytes:
    return (b"w" if source.randrange(2) else b"l") + json_changed(value[1:], source)


@cache
def _compressed() -> list[bytes]:
    body = _scores()[0][1:] * 20
    raw = zlib.compressobj(wbits=-15)
    return [
        b"g" + gzip.compress(body),
        b"g" + gzip.compress(body) * 3,
        b"d" + zlib.compress(body),
        b"d" + raw.compress(body) + raw.flush(),
        b"g" + gzip.compress(bytes(4 << 20)),
    ]


def _run_compressed(value: bytes) -> str:
    taken = [0]

    def take(count: int) -> None:
        taken[0] += count

    try:
        body = _loop().run(inflated(value[1:], "gzip" if value[:1] == b"g" else "deflate", take))
    except RefusedError as error:
        promised(taken[0] <= MAX_BODY_BYTES + (1 << 20), "more than the bound was inflated")
        return rejected(error.refusal.label, str(error), REASONS)
    promised(len(body) == taken[0] <= MAX_BODY_BYTES, "more than the bound was inflated, or it was not told")
    return TAKEN


TARGETS = [
    Target("rank_body", partial(_run, "rank"), _ranks, _body_changed),
    Target("score_body", partial(_run, "score"), _scores, _body_changed),
    Target("compressed_body", _run_compressed, _compressed),
]
