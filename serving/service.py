"""What a call does, from its body to its answer: read features, score, log what was served, count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD
from learners.features.encode import EncodedIds
from learners.features.hashing import FeatureError
from learners.features.rows import Rows
from learners.features.session_state import SessionView
from serving.messages import BadRequestError, RankRequest, RequestParser
from serving.metrics import ServingMetrics
from serving.ranking import Ranker, Scored, expected_value, ranked
from serving.served_log import ServedLog
from serving.served_rows import heartbeat_record, served_records
from serving.status import RecentActivity


class SessionReader(Protocol):
    """Where session states come from."""

    async def view(self, ids: EncodedIds) -> SessionView:
        """The states that these requests read, in one round trip; empty ones when the store does not answer."""
        ...


class ScoringService:
    """Ranks and scores. One object, one event loop.

    Parameters
    ----------
    wall_ms : the wall clock; freshness is measured with it whatever clock the stream runs on.
    """

    def __init__(
        self,
        parser: RequestParser,
        ranker: Ranker,
        sessions: SessionReader,
        served_log: ServedLog,
        metrics: ServingMetrics,
        wall_ms: Callable[[], int],
    ) -> None:
        self.ranker = ranker
        self.activity = RecentActivity()
        self._parser = parser
        self._spec = ranker.encoder.spec
        self._sessions = sessions
        self._served_log = served_log
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._in_flight: dict[int, int] = {}  # call -> its earliest event time
        self._calls = 0
        self._pending_watermark_ms = 0  # a promise that had to wait; 0: none

    async def rank(self, body: bytes) -> bytes:
        """`POST /v1/rank`. Raises BadRequestError."""
        began = time.perf_counter()
        request = self._parser.rank(body)
        with self._in_flight_at([request]):
            scored = await self._score([request])
            self._refuse_unpredicted(request)
            value = expected_value(scored.p, scored.p_conversion, request.prices)
            order = ranked(value, scored.logit, request.top_k)
            if len(order) < len(scored.p):
                self._log(scored.take(np.sort(order)))
            else:
                self._log(scored)
        answer = _header(scored) | {
            "request_id": str(request.content.request_id),
            "user_key": str(int(scored.ids.user_key[0])),
            "ranked": _ranked_ads(request, scored, value, order.tolist()),
        }
        self._answered(scored, 1, began)
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    async def score(self, body: bytes) -> bytes:
        """`POST /v1/score`. Raises BadRequestError."""
        began = time.perf_counter()
        requests, watermark_ms = self._parser.score(body)
        if not requests:
            self._promise(watermark_ms)
            return orjson.dumps(self._state() | {"results": []})
        with self._in_flight_at(requests):
            scored = await self._score(requests)
            self._log(scored)
        self._promise(watermark_ms)
        starts = scored.starts().tolist()
        identified = zip(requests, scored.ids.user_key.tolist(), starts[:-1], starts[1:], strict=True)
        impressions = list(map(str, scored.impression_id.tolist()))
        results = [
            {
                "request_id": str(request.content.request_id),
                "user_key": str(user_key),
                "impression_ids": impressions[start:end],
                "p": scored.p[start:end],
                "logit": scored.logit[start:end],
                "p_conversion": scored.p_conversion[start:end],
                "conversion_logit": scored.conversion_logit[start:end],
            }
            for request, user_key, start, end in identified
        ]
        self._answered(scored, len(requests), began)
        return orjson.dumps(_header(scored) | {"results": results}, option=orjson.OPT_SERIALIZE_NUMPY)

    def heartbeat(self, now_ms: int) -> None:
        """Promise every partition of the served topic that nothing before now, or before a call in flight, follows."""
        self._promise(min(self._in_flight.values(), default=now_ms))

    async def _score(self, requests: list[RankRequest]) -> Scored:
        try:
            ids = self.ranker.encoder.ids([request.content for request in requests])
        except FeatureError as error:
            raise BadRequestError(str(error)) from error
        view = await self._sessions.view(ids)
        scored = self.ranker.score(ids, view)
        unsound = ~np.isfinite(scored.logit)
        if self.ranker.model.predicts_conversions:
            unsound |= ~np.isfinite(scored.conversion_logit)
        if bad := int(np.count_nonzero(unsound)):
            rows = scored.encoded.rows()
            detail = (
                f"model version {scored.model_version} gave {bad} of {len(scored.logit)} logits that are not finite"
            )
            if np.isfinite(rows.dense).all():  # else it is the session features that are not
                self.ranker.model.distrust(Rows(rows.ids[unsound], rows.dense[unsound]), detail)
            raise ArithmeticError(
                f"{detail}: nothing was answered or logged. Ask again: serving goes back to its last good version."
            )
        for age_s in self.ranker.model.freshness.predicted(self._wall_ms()).tolist():
            self._metrics.freshness.observe(age_s)
        return scored

    def _refuse_unpredicted(self, request: RankRequest) -> None:
        """Raise BadRequestError for a price per conversion where the model predicts none."""
        index = request.priced_by_conversion()
        if index is None or self.ranker.model.predicts_conversions:
            return
        raise BadRequestError(
            f"$.ads[{index}].value={request.prices.per_conversion[index]:g} is paid for a conversion, and model "
            f"version {self.ranker.model.version} has no head {CONVERSION_HEAD!r} given the click (its heads: "
            f"{', '.join(self.ranker.model.head_names)}): the ad could not be ranked, nothing was answered. Send its "
            "bid per click, or train a base whose --model file names that head."
        )

    def _log(self, scored: Scored) -> None:
        for partition, record in served_records(scored, self._spec, self._served_log.partitions):
            self._served_log.write(partition, record.encode())

    def _promise(self, watermark_ms: int | None) -> None:
        """Write a promise behind the rows; while rows are sent again it waits for a later call or heartbeat."""
        self._pending_watermark_ms = max(self._pending_watermark_ms, watermark_ms or 0)
        if not self._pending_watermark_ms or self._served_log.sends_out_of_order:
            return
        record = heartbeat_record(self._spec, self._pending_watermark_ms).encode()
        self._pending_watermark_ms = 0
        for partition in range(self._served_log.partitions):
            self._served_log.write(partition, record)

    @contextmanager
    def _in_flight_at(self, requests: list[RankRequest]) -> Iterator[None]:
        self._calls += 1
        call = self._calls
        self._in_flight[call] = min(request.content.ts_ms for request in requests)
        try:
            yield
        finally:
            del self._in_flight[call]

    def _answered(self, scored: Scored, requests: int, began: float) -> None:
        seconds = time.perf_counter() - began
        sums = {CLICK_HEAD: float(scored.p.sum(dtype=np.float64))}
        if self.ranker.model.predicts_conversions:
            sums[CONVERSION_HEAD] = float(scored.p_conversion.sum(dtype=np.float64))
        self.activity.answered(requests, len(scored.p), sums, seconds)
        self._metrics.rows.inc(len(scored.p))

    def _state(self) -> dict[str, Any]:
        ranker = self.ranker
        return {
            "model_version": ranker.model.version,
            "map_version": ranker.calibrator.map.version,
            "applied_ms": ranker.applied_ms,
        }


def _header(scored: Scored) -> dict[str, Any]:
    return {
        "model_version": scored.model_version,
        "map_version": scored.map_version,
        "applied_ms": scored.applied_ms,
    }


def _ranked_ads(
    request: RankRequest, scored: Scored, value: NDArray[np.float64], order: list[int]
) -> list[dict[str, Any]]:
    p, logit = scored.p[order], scored.logit[order]
    p_conversion = scored.p_conversion[order]
    return [
        {
            "position": position,
            "index": index,
            "impression_id": str(int(scored.impression_id[index])),
            "p": p[position],
            "logit": logit[position],
            "p_conversion": p_conversion[position],
            "expected_value": value[index],
            "bid": request.prices.per_click[index],
            "value": request.prices.per_conversion[index],
            "ad": request.content.ads[index],
        }
        for position, index in enumerate(order)
    ]
