"""Scoring and ranking: plain code over arrays, no clock and no random source but those passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.encode import Encoded, EncodedIds, Encoder
from learners.session_state import SessionView
from serving.calibrator import HotCalibrator
from serving.impression_ids import ImpressionIds
from serving.model import HotModel


@dataclass(frozen=True, slots=True)
class Scored:
    """R requests and B rows, scored by one version of the model and one of the map."""

    ids: EncodedIds
    encoded: Encoded
    logit: NDArray[np.float32]  # (B,) raw model output
    p: NDArray[np.float32]  # (B,) calibrated
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
            self.ids, kept, self.logit[rows], self.p[rows], self.impression_id[rows],
            self.model_version, self.map_version, self.applied_ms,
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
        of_map = self.calibrator.watermark_ms
        return self.model.watermark_ms if of_map is None else min(self.model.watermark_ms, of_map)

    def score(self, ids: EncodedIds, view: SessionView) -> Scored:
        """Score all rows in one batch. Synchronous, so that no swap can come in between: one version scores it all."""
        encoded = self.encoder.encode(ids, view)
        logit = self.model.predict(encoded.rows()) if encoded.row_count else np.zeros(0, np.float32)
        curve = self.calibrator.map
        return Scored(
            ids=ids,
            encoded=encoded,
            logit=logit,
            p=curve.apply(logit),
            impression_id=self.impressions.take(encoded.row_count),
            model_version=self.model.version,
            map_version=curve.version,
            applied_ms=self.applied_ms,
        )


def ranked(p: NDArray[np.float32], logit: NDArray[np.float32], bids: Sequence[float], top_k: int) -> NDArray[np.intp]:
    """(min(top_k, B),) the places of the ads by expected value p x bid, best first.

    Where p x bid ties (float32 ends near 0 and 1), the logit decides, then the place in the request.
    """
    value = p.astype(np.float64) * np.asarray(bids, dtype=np.float64)
    return np.lexsort((np.arange(len(p)), -logit, -value))[:top_k]
