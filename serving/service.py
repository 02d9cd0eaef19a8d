"""What a call does, from its body to its answer: read features, score, log what was served, count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from learners.examples.terms import CLICK_HEAD, CONVERSION_HEAD
from learners.features.encode import Encoded, EncodedIds
from learners.features.hashing import FeatureError
from learners.features.rows import Rows
from learners.features.session_state import SessionView
from serving.admission import Turn
from serving.field_names import FieldNames
from serving.messages import BadRequestError, RankRequest, RequestParser
from serving.metrics import ServingMetrics
from serving.ranking import Ranker, Scored, expected_value, ranked
from serving.served_log import ServedLog
from serving.served_rows import heartbeat_record, served_records
from serving.slices import joined, joined_ids, slices
from serving.status import RecentActivity
from stream.servers.logs import RateLimitedLog


class SessionReader(Protocol):
    """Where session states come from."""

    async def view(self, ids: EncodedIds) -> SessionView:
        """The states that these requests read, in one round trip; empty ones when the store does not answer."""
        ...

    @property
    def failing(self) -> bool:
        """Whether the store has not answered since it failed."""
        ...


class ScoringService:
    """Ranks and scores. One object, one event loop.

    Parameters
    ----------
    wall_ms : the wall clock; freshness is measured with it whatever clock the stream runs on.
    turn : held while a piece of a call is worked on, so that between two pieces other things are done.
    degraded : what is amiss with all answers of this moment, in the words of the metric.
    """

    def __init__(
        self,
        parser: RequestParser,
        ranker: Ranker,
        sessions: SessionReader,
        served_log: ServedLog,
        metrics: ServingMetrics,
        wall_ms: Callable[[], int],
        turn: Turn,
        degraded: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self.ranker = ranker
        self.activity = RecentActivity()
        self._parser = parser
        self._spec = ranker.encoder.spec
        self._sessions = sessions
        self._served_log = served_log
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._turn = turn
        self._degraded = degraded
        self._names = FieldNames(ranker.encoder.spec)
        self._report_misspelt = RateLimitedLog()
        self._in_flight: dict[int, int] = {}  # call -> its earliest event time
        self._calls = 0
        self._pending_watermark_ms = 0  # a promise that had to wait; 0: none

    async def rank(self, body: bytes) -> bytes:
        """`POST /v1/rank`. Raises BadRequestError."""
        began = time.perf_counter()
        async with self._turn:
            request = self._parser.rank(body)
        with self._in_flight_at([request]):
            ids, encoded, notes = await self._encoded([request])
            async with self._turn:
                scored = self._score(ids, encoded)
                self._refuse_unpredicted(request)
                value = expected_value(scored.p, scored.p_conversion, request.prices)
                order = ranked(value, scored.logit, request.top_k)
                answer = _dumped(
                    {
                        **_header(scored),
                        **notes,
                        "request_id": str(request.content.request_id),
                        "user_key": str(int(scored.ids.user_key[0])),
                        "ranked": _ranked_ads(request, scored, value, order.tolist()),
                    }
                )
                self._log(scored if len(order) == len(scored.p) else scored.take(np.sort(order)))
                self._answered(scored, 1, began)
        return answer

    async def score(self, body: bytes) -> bytes:
        """`POST /v1/score`. Raises BadRequestError."""
        began = time.perf_counter()
        async with self._turn:
            requests, watermark_ms = self._parser.score(body)
        if not requests:
            self._promise(watermark_ms)
            return orjson.dumps({**self._state(), "degraded": self._amiss(), "results": []})
        with self._in_flight_at(requests):
            ids, encoded, notes = await self._encoded(requests)
            async with self._turn:
                scored = self._score(ids, encoded)
                answer = _dumped({**_header(scored), **notes, "results": _results(requests, scored)})
                self._log(scored)
                self._answered(scored, len(requests), began)
        self._promise(watermark_ms)
        return answer

    def heartbeat(self, now_ms: int) -> None:
        """Promise every partition of the served topic that nothing before now, or before a call in flight, follows."""
        self._promise(min(self._in_flight.values(), default=now_ms))

    async def _encoded(self, requests: Sequence[RankRequest]) -> tuple[EncodedIds, Encoded, dict[str, Any]]:
        """What the model reads of the requests, and what the answer says beside scores. Raises BadRequestError."""
        all_ids, all_encoded = [], []
        misspelt: dict[str, str] = {}
        for part in slices([request.content for request in requests]):
            async with self._turn:
                try:
                    ids = self.ranker.encoder.ids(part)
                except FeatureError as error:
                    raise BadRequestError(str(error)) from error
                misspelt |= self._names.misspelt(part, ids)
            view = await self._sessions.view(ids)
            async with self._turn:
                all_encoded.append(self.ranker.encoder.encode(ids, view))
            all_ids.append(ids)
        notes: dict[str, Any] = {"degraded": self._amiss()}
        if misspelt:
            notes["misspelt_fields"] = misspelt
            self._report_misspelt("names in requests are not those of fields: read as missing", given=misspelt)
            for meant in set(misspelt.values()):
                self._metrics.misspelt_fields.labels(meant).inc()
        return joined_ids(all_ids), joined(all_encoded), notes

    def _amiss(self) -> list[str]:
        return [*self._degraded(), *(["session_store"] if self._sessions.failing else [])]

    def _score(self, ids: EncodedIds, encoded: Encoded) -> Scored:
        scored = self.ranker.score_encoded(ids, encoded)
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


def _results(requests: Sequence[RankRequest], scored: Scored) -> list[dict[str, Any]]:
    starts = scored.starts().tolist()
    impressions = list(map(str, scored.impression_id.tolist()))
    identified = zip(requests, scored.ids.user_key.tolist(), starts[:-1], starts[1:], strict=True)
    return [
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


def _dumped(answer: dict[str, Any]) -> bytes:
    """The answer as JSON, made before anything is logged as served. Raises BadRequestError."""
    try:
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:  # of all that stands in it, the ads alone are the caller's
        raise BadRequestError(
            f"an ad cannot be sent back as JSON ({error}): nothing was scored. Send no integers beyond 64 bits, no "
            "broken Unicode and no lists in lists without end in it."
        ) from error


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
