"""Large calls in slices of whole requests: between two of them whatever else is due is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from learners.features.encode import Encoded, EncodedIds, Request

SLICE_ROWS = 2_000  # some ten milliseconds of one core


def slices(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Runs of requests of at most SLICE_ROWS ads, or of one request; most calls are one."""
    start, rows = 0, 0
    for at, request in enumerate(requests):
        if rows and rows + len(request.ads) > SLICE_ROWS:
            yield requests[start:at]
            start, rows = at, 0
        rows += len(request.ads)
    yield requests[start:]


def joined_ids(parts: Sequence[EncodedIds]) -> EncodedIds:
    """The ids of all slices, as if they had been one."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in EncodedIds._fields
        if name != "row_request"
    }
    return EncodedIds(**columns, row_request=_row_request([(len(one.request_ids), one.row_request) for one in parts]))


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The rows of all slices, as if they had been one."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in Encoded._fields
        if name not in ("row_request", "row_count")
    }
    row_request = _row_request([(len(one.request_ids), one.row_request) for one in parts])
    return Encoded(**columns, row_request=row_request, row_count=len(row_request))


def _row_request(parts: Sequence[tuple[int, NDArray[np.intp]]]) -> NDArray[np.intp]:
    """(B,) the request of each row, counted through all slices; of each slice its requests and rows' requests."""
    firsts = np.cumsum([0, *(requests for requests, _ in parts)])
    return np.concatenate([rows + first for first, (_, rows) in zip(firsts.tolist(), parts, strict=False)])
