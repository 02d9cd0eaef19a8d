"""The JSON of the scoring API, checked before anything is scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import orjson

from learners.features.encode import Request
from learners.features.shown import cut, shown
from serving.field_names import nearest
from serving.ranking import Prices
from serving.refusals import Refusal, RefusedError
from stream.records.limits import EARLIEST_MS, LATEST_MS

U64_MAX = 2**64 - 1
_VALUES_A_ROW = 64  # of a whole call, on the average
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class BadRequestError(RefusedError):
    """The caller's request cannot be scored."""

    def __init__(self, message: str) -> None:
        super().__init__(Refusal.BODY, message)


class RequestMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request for ads: whom, where, which candidates.

    ``bid`` in an ad is what its click pays, ``value`` what its conversion pays. An ad with both is paid both; one with
    neither counts as ``bid`` 1, so that ads without prices are ranked by p.
    """

    user: dict[str, Any]
    ads: list[dict[str, Any]]
    context: dict[str, Any] = {}
    request_id: int | str | None = None
    ts_ms: _Int64 | None = None
    top_k: _Int64 | None = None


class ScoreMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many requests in one call, and the promise that no request earlier than ``watermark_ms`` follows."""

    requests: list[RequestMessage]
    watermark_ms: _Int64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may ask for, so that no call holds the event loop for long."""

    max_ads: int = 2_000  # 1000 ads take some milliseconds
    max_requests: int = 1_000
    max_rows: int = 20_000  # ads of all requests of a call: the product of the two above would be a minute's work
    max_future_s: float = 60.0  # an event time ahead of the clock would drag every watermark with it
    max_past_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class RankRequest:
    """A checked request: what its ads pay, and how many of them to answer with."""

    content: Request
    prices: Prices
    top_k: int

    def priced_by_conversion(self) -> int | None:
        """The first ad that pays for a conversion; None when all pay for clicks alone."""
        paid = np.flatnonzero(self.prices.per_conversion)
        return int(paid[0]) if len(paid) else None


_M = TypeVar("_M")
_rank_decoder = msgspec.json.Decoder(RequestMessage)
_score_decoder = msgspec.json.Decoder(ScoreMessage)


class RequestParser:
    """Turns bodies into checked requests.

    Parameters
    ----------
    now_ms : the wall clock, which gives requests without a ``ts_ms`` their event time and bounds the others; None
        when time comes from the log alone: then every request must say its own.
    new_id : gives a request without an id one.
    """

    def __init__(self, limits: Limits, now_ms: Callable[[], int] | None, new_id: Callable[[], int]) -> None:
        self._limits = limits
        self._now_ms = now_ms
        self._new_id = new_id

    def rank(self, body: bytes) -> RankRequest:
        """The request of `POST /v1/rank`. Raises BadRequestError."""
        return self._checked(self._decode(_rank_decoder, body, "a rank request"), "$")

    def score(self, body: bytes) -> tuple[list[RankRequest], int | None]:
        """The requests and the watermark of `POST /v1/score`. Raises BadRequestError."""
        message = self._decode(_score_decoder, body, "a score call")
        if len(message.requests) > self._limits.max_requests:
            raise BadRequestError(
                f"$.requests holds {len(message.requests)} requests, a call may have {self._limits.max_requests}: "
                "nothing was scored. Send them in several calls."
            )
        rows = sum(len(one.ads) for one in message.requests)
        if rows > self._limits.max_rows:
            raise BadRequestError(
                f"$.requests hold {rows} ads together, a call may have {self._limits.max_rows}: nothing was scored. "
                "Send them in several calls."
            )
        if message.watermark_ms is not None and self._now_ms is not None:
            raise BadRequestError(
                f"$.watermark_ms={message.watermark_ms} was sent to a server that runs on the wall clock: it would "
                "stop the clock of every worker. Leave it out, or start serving with --clock log."
            )
        if message.watermark_ms is not None:
            _check_time(message.watermark_ms, "$.watermark_ms")
        return [self._checked(m, f"$.requests[{i}]") for i, m in enumerate(message.requests)], message.watermark_ms

    def _decode(self, decoder: msgspec.json.Decoder[_M], body: bytes, what: str) -> _M:
        self._check_extent(body)
        return _decode(decoder, body, what)

    def _check_extent(self, body: bytes) -> None:
        """Refuse what would be many times its bytes in memory, before it is: counting bytes costs next to nothing."""
        rows, requests = self._limits.max_rows, self._limits.max_requests
        nested, most_nested = body.count(b"{") + body.count(b"["), 2 * rows + 4 * requests + 1_000
        values, most_values = body.count(b","), _VALUES_A_ROW * (rows + requests)
        if nested > most_nested or values > most_values:
            raise BadRequestError(
                f"the body holds {nested} objects and lists of {values} values, a call of {rows} ads may have "
                f"{most_nested} and {most_values} (brackets and commas in texts count, too): nothing was scored. Send "
                "the requests in several calls, with the fields that the feature spec names."
            )

    def _checked(self, message: RequestMessage, at: str) -> RankRequest:
        if not 1 <= len(message.ads) <= self._limits.max_ads:
            raise BadRequestError(
                f"{at}.ads holds {len(message.ads)} ads, a request must hold 1 to {self._limits.max_ads}: nothing was "
                "scored. Retrieve fewer candidates, or send the request only when there are some."
            )
        if message.top_k is not None and message.top_k < 1:
            raise BadRequestError(
                f"{at}.top_k={message.top_k} must be at least 1: no ad would be answered. Leave it out for all."
            )
        request_id = self._new_id() if message.request_id is None else _u64(message.request_id, f"{at}.request_id")
        ts_ms = self._event_time(message.ts_ms, at)
        prices = prices_of(message.ads, at)
        request = Request(
            request_id=request_id, ts_ms=ts_ms, user=message.user, context=message.context, ads=message.ads
        )
        return RankRequest(request, prices, message.top_k or len(message.ads))

    def _event_time(self, ts_ms: int | None, at: str) -> int:
        if self._now_ms is None:
            if ts_ms is None:
                raise BadRequestError(
                    f"{at}.ts_ms is missing: serving runs on the log's clock, which has no 'now', so every request "
                    "must carry its event time. Add ts_ms in Unix milliseconds, or start serving with --clock wall."
                )
            _check_time(ts_ms, f"{at}.ts_ms")
            return ts_ms
        now = self._now_ms()
        if ts_ms is None:
            return now
        earliest, latest = now - self._limits.max_past_s * 1000, now + self._limits.max_future_s * 1000
        if not earliest <= ts_ms <= latest:
            raise BadRequestError(
                f"{at}.ts_ms={ts_ms} lies outside {earliest:.0f}..{latest:.0f}, the clock's {now} less "
                f"{self._limits.max_past_s:g} s and plus {self._limits.max_future_s:g} s: its clicks could not be "
                "joined. Send Unix milliseconds, or leave ts_ms out for now."
            )
        return ts_ms


def _check_time(ts_ms: int, at: str) -> None:
    if not EARLIEST_MS <= ts_ms < LATEST_MS:
        raise BadRequestError(
            f"{at}={ts_ms} lies outside {EARLIEST_MS}..{LATEST_MS}, the years 2000 to 2100: the join would refuse what "
            "was served then, so nothing was scored. Send Unix milliseconds."
        )


def _u64(value: int | str, at: str) -> int:
    text = str(value)
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else -1
    if not 1 <= number <= U64_MAX:
        raise BadRequestError(
            f"{at}={shown(value, 40)} is not an integer in 1..{U64_MAX}: answers could not be distinguished. Send a "
            "decimal string, or leave it out and take the one in the answer."
        )
    return number


def prices_of(ads: Sequence[Mapping[str, Any]], at: str = "$") -> Prices:
    """What each ad pays for a click and a conversion; ``at`` is their path, for the error. Raises BadRequestError."""
    values = [_price(ad, "value", at, index) if "value" in ad else 0.0 for index, ad in enumerate(ads)]
    bids = [_price(ad, "bid", at, i) if "bid" in ad else float("value" not in ad) for i, ad in enumerate(ads)]
    return Prices(np.array(bids), np.array(values))


_PAID_FOR = {"bid": "click", "value": "conversion"}
_MAX_PRICE = 1e15  # beyond it sums of prices lose cents; no ad pays as much, in any currency


def _price(ad: Mapping[str, Any], name: str, at: str, index: int) -> float:
    price = ad[name]
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price <= _MAX_PRICE:
        raise BadRequestError(
            f"{at}.ads[{index}].{name}={shown(price)} is not a number of 0 to {_MAX_PRICE:g}: the ads could not be "
            f"ranked by what they are expected to pay. Send what a {_PAID_FOR[name]} pays, or leave {name} out."
        )
    return float(price)


def _decode(decoder: msgspec.json.Decoder[_M], body: bytes, what: str) -> _M:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).rpartition(" - at `")
        reason, path = (reason, path.rstrip("`")) if reason else (str(error), "$")
        raise BadRequestError(
            f"{cut(path)}={_shown(body, path)} does not fit {what}: {_reason(reason)}. Nothing was scored. Correct the "
            "field; the README shows a whole request."
        ) from error
    except RecursionError as error:
        raise BadRequestError(
            f"the body ({len(body)} bytes) nests objects and lists deeper than can be read: nothing was scored. Send "
            f"{what} as the README shows one."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(
            f"the body ({len(body)} bytes, starts with {shown(body[:40])}) is not JSON: {cut(str(error))}. Nothing was "
            f"scored. Send {what} as a JSON object in UTF-8."
        ) from error


_FIELDS = frozenset((*RequestMessage.__struct_fields__, *ScoreMessage.__struct_fields__))


def _reason(reason: str) -> str:
    """What msgspec says, cut to a line; an unknown field with the one that may be meant."""
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown is None:
        return cut(reason)
    meant = nearest(unknown[1], _FIELDS) if len(unknown[1]) <= 64 else None
    return f"there is no field {shown(unknown[1])}" + (f", {meant} may be meant" if meant else "")


def _shown(body: bytes, path: str) -> str:
    """The JSON value at a msgspec path such as `$.requests[0].ts_ms`, cut to a line; "?" where there is none."""
    try:
        value = orjson.loads(body)
        for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
            value = value[int(index)] if index else value[key]
        return shown(value)
    except (ValueError, KeyError, IndexError, TypeError):
        return "?"
