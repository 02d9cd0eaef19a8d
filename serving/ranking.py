"""Scoring and ranking: plain code over arrays, no clock and no random source but those passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.features.encode import Encoded, EncodedIds, Encoder
from learners.features.session_state import SessionView
from serving.calibrator import HotCalibrator
from serving.impression_ids import ImpressionIds
from serving.model import HotModel, Logits

_NO_LOGITS = Logits(np.zeros(0, np.float32), None)


class Prices(NamedTuple):
    """What the ads of one request pay, (B,) each."""

    per_click: NDArray[np.float64]  # `bid`
    per_conversion: NDArray[np.float64]  # `value`


@dataclass(frozen=True, slots=True)
class Scored:
    """R requests and B rows, scored by one version of the model and one of the map."""

    ids: EncodedIds
    encoded: Encoded
    logit: NDArray[np.float32]  # (B,) raw model output
    p: NDArray[np.float32]  # (B,) calibrated
    conversion_logit: NDArray[np.float32]  # (B,) of P(conversion | click); NaN: the model has no such head
    p_conversion: NDArray[np.float32]  # (B,) calibrated; NaN likewise
    impression_id: NDArray[np.uint64]  # (B,)
    model_version: int
    map_version: int
    applied_ms: int

    def starts(self) -> NDArray[np.intp]:
        """(R + 1,) the first row of each request, and B at the end."""
        return np.searchsorted(self.encoded.row_request, np.arange(len(self.encoded.request_ids) + 1))

    def take(self, rows: NDArray[np.intp]) -> Scored:
        """The rows at ``rows`` (ascending), of the same requests."""
        e = self.encoded
        kept = Encoded(e.request_ids, e.request_dense, e.ad_ids[rows], e.ad_dense[rows], e.row_request[rows], len(rows))
        return Scored(
            self.ids, kept, self.logit[rows], self.p[rows], self.conversion_logit[rows], self.p_conversion[rows],
            self.impression_id[rows], self.model_version, self.map_version, self.applied_ms,
        )  # fmt: skip


class Ranker:
    """Scores encoded requests with whatever model and map are in use at that moment."""

    def __init__(
        self, encoder: Encoder, model: HotModel, calibrator: HotCalibrator, impressions: ImpressionIds
    ) -> None:
        self.encoder = encoder
        self.model = model
        self.calibrator = calibrator
        self.impressions = impressions

    @property
    def applied_ms(self) -> int:
        """Event time up to which the model, and the map once there is one, have seen every example."""
        map_watermark_ms = self.calibrator.watermark_ms
        return self.model.watermark_ms if map_watermark_ms is None else min(self.model.watermark_ms, map_watermark_ms)

    def score(self, ids: EncodedIds, view: SessionView) -> Scored:
        """Encode and score all rows, as `score_encoded`."""
        return self.score_encoded(ids, self.encoder.encode(ids, view))

    def score_encoded(self, ids: EncodedIds, encoded: Encoded) -> Scored:
        """Score all rows in one batch. Synchronous, so that no swap can come in between: one version scores it all."""
        rows = encoded.rows()
        logits = self.model.predict(rows) if encoded.row_count else _NO_LOGITS
        curve = self.calibrator.map
        if logits.conversion is None:
            conversion_logit = p_conversion = np.full(encoded.row_count, np.nan, np.float32)
        else:
            conversion_logit = logits.conversion
            p_conversion = self.calibrator.conversion_map.apply(conversion_logit, rows)
        return Scored(
            ids=ids,
            encoded=encoded,
            logit=logits.click,
            p=curve.apply(logits.click, rows),
            conversion_logit=conversion_logit,
            p_conversion=p_conversion,
            impression_id=self.impressions.take(encoded.row_count),
            model_version=self.model.version,
            map_version=curve.version,
            applied_ms=self.applied_ms,
        )


def expected_value(p: NDArray[np.float32], p_conversion: NDArray[np.float32], prices: Prices) -> NDArray[np.float64]:
    """(B,) what a display of each ad is expected to pay: p x (bid + value x p_conversion).

    ``value`` is paid for a conversion, whose probability is p x p_conversion (pCTCVR). Where it is 0, ``p_conversion``
    is not looked at: it is NaN for a model without that head.
    """
    per_click = prices.per_click
    if prices.per_conversion.any():
        paid = np.where(prices.per_conversion > 0, p_conversion.astype(np.float64), 0.0)
        per_click = per_click + prices.per_conversion * paid
    value: NDArray[np.float64] = p.astype(np.float64) * per_click
    return value


def ranked(value: NDArray[np.float64], logit: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """(min(top_k, B),) the indices of the ads by their `expected_value`, best first.

    Where that ties (float32 ends near 0 and 1), the logit decides, then the order in the request.
    """
    return np.lexsort((np.arange(len(value)), -logit, -value))[:top_k]
